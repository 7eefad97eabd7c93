//! This node's own object, for those who wait for it.
//!
//! Place in the flow: a [`NodeSink`] sits in front of the engine's inbox, lets every change pass, and
//! keeps the last Node for [`crate::node`]'s wait rules and for reactions to Node changes. It decides
//! nothing about them.

use std::sync::Arc;

use tokio::sync::watch;

use crate::model::{Change, Kind, Node, Object, Skip};
use crate::source::Sink;

/// What is known of this node's object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedNode {
    /// The Node was listed once (section 3.2, step 1).
    pub listed: bool,
    /// The object, `None` while it does not exist.
    pub node: Option<Arc<Node>>,
}

/// Passes all changes on and shows Node changes to the receivers of [`observed_node`].
pub struct NodeSink {
    next: Arc<dyn Sink>,
    node: watch::Sender<ObservedNode>,
}

/// A sink in front of `next`, and a view of this node as it is at any time.
pub fn observed_node(next: Arc<dyn Sink>) -> (NodeSink, watch::Receiver<ObservedNode>) {
    let (sender, receiver) = watch::channel(ObservedNode::default());
    (NodeSink { next, node: sender }, receiver)
}

impl Sink for NodeSink {
    fn deliver(&self, change: Change) {
        let observed = match &change {
            Change::Apply(Object::Node(node)) => Some(Some(Arc::clone(node))),
            Change::Delete(Kind::Node, _) => Some(None),
            Change::Replace(Kind::Node, objects) => Some(objects.iter().find_map(as_node)),
            _ => None,
        };
        let listed = matches!(change, Change::Replace(..)) || self.node.borrow().listed;
        // Whoever is told here may count on `next` knowing it too.
        self.next.deliver(change);
        if let Some(node) = observed {
            self.node.send_replace(ObservedNode { listed, node });
        }
    }

    fn skipped(&self, skip: &Skip) {
        self.next.skipped(skip);
    }
}

fn as_node(object: &Object) -> Option<Arc<Node>> {
    match object {
        Object::Node(node) => Some(Arc::clone(node)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::model::ObjectName;

    #[derive(Default)]
    struct Kept(Mutex<Vec<Change>>);

    impl Sink for Kept {
        fn deliver(&self, change: Change) {
            self.0.lock().unwrap().push(change);
        }
    }

    fn node() -> Arc<Node> {
        Arc::new(Node {
            name: ObjectName::cluster_scoped("node-a"),
            zone: None,
            addresses: vec!["192.0.2.1".parse().unwrap()],
            pod_cidrs: Vec::new(),
            deleting: false,
            to_be_deleted: false,
        })
    }

    #[test]
    fn every_change_passes_and_node_changes_are_seen() {
        let kept = Arc::new(Kept::default());
        let (sink, seen) = observed_node(kept.clone());
        let name = ObjectName::cluster_scoped("node-a");
        let cases = [
            (Change::Replace(Kind::Service, vec![]), false, false),
            (Change::Replace(Kind::Node, vec![]), true, false),
            (Change::Apply(Object::Node(node())), true, true),
            (Change::Delete(Kind::Service, name.clone()), true, true),
            (Change::Delete(Kind::Node, name), true, false),
            (Change::Replace(Kind::Node, vec![Object::Node(node())]), true, true),
        ];
        for (change, listed, exists) in cases.clone() {
            sink.deliver(change.clone());
            let observed = seen.borrow().clone();
            assert_eq!((observed.listed, observed.node.is_some()), (listed, exists), "{change:?}");
        }
        let passed: Vec<Change> = cases.into_iter().map(|(change, ..)| change).collect();
        assert_eq!(*kept.0.lock().unwrap(), passed);
    }
}
