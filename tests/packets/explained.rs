//! What `kubeweir explain` says of every dial, against what the packets did.
//!
//! [`super::case::check`] asks for each of its cases, tests that dial by themselves ask here. The one
//! exception is dials that race with commits: no table is the one they met.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;

use kubeweir::inspect::explain;
use kubeweir::inspect::explain::{Explanation, Question, Verdict};
use kubeweir::kernel::Kernel;
use kubeweir::model::{Family, PerFamily, Protocol};
use kubeweir::netlink::NetlinkKernel;
use kubeweir::node::addresses;
use kubeweir::ruleset::Environment;
use kubeweir::testing::lab::{Answer, Lab, Outcome, Place};
use tokio::runtime;

/// The kernel's tables and the node's addresses at one moment.
pub struct Explainer {
    tables: PerFamily<explain::Explainer>,
    node: Environment,
    /// On which interface packets of a client outside arrive: the same for all of them.
    from_outside: Mutex<BTreeMap<Family, String>>,
}

impl Explainer {
    pub fn of(lab: &Lab) -> Explainer {
        lab.node.run(|| {
            let mut kernel = NetlinkKernel::open().expect("a socket");
            let read = block_on(addresses::read()).expect("addresses");
            Explainer {
                tables: PerFamily::from_fn(|family| {
                    explain::Explainer::new(kernel.dump(family).expect("a dump"))
                }),
                node: Environment { local_addresses: read.0.into_iter().collect() },
                from_outside: Mutex::default(),
            }
        })
    }

    /// Says what is wrong if packets and explanation disagree. The dials must be enough to meet
    /// every endpoint.
    pub fn judge(
        &self,
        lab: &Lab,
        from: Place,
        (to, protocol): (SocketAddr, Protocol),
        outcomes: &[Outcome],
    ) -> Result<Explanation, String> {
        let said = self.explain(lab, from, (to, protocol));
        match agree(&said, from, outcomes) {
            Ok(()) => Ok(said),
            Err(why) => Err(format!("{why}\n{said}")),
        }
    }

    /// What is said of a dial.
    pub fn explain(
        &self,
        lab: &Lab,
        from: Place,
        (to, protocol): (SocketAddr, Protocol),
    ) -> Explanation {
        let family = Family::of(&to.ip());
        let source = from.source(family).unwrap_or_else(|| self.host_source(lab, to.ip()));
        let input = match from {
            Place::Host => None,
            Place::OutsideAt(_) => {
                let mut known = self.from_outside.lock().expect("no dialler panics");
                Some(known.entry(family).or_insert_with(|| interface(lab, source)).clone())
            }
            _ => Some(interface(lab, source)),
        };
        let question = Question { from: SocketAddr::new(source, 0), to, protocol, input };
        self.tables[family].explain(&question, &self.node)
    }

    /// The address the kernel gives a dial of the host.
    fn host_source(&self, lab: &Lab, to: IpAddr) -> IpAddr {
        if self.node.is_local(to) {
            return to;
        }
        lab.node.run(|| {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = std::net::UdpSocket::bind(any).expect("a port");
            socket.connect((to, 9)).expect("a route");
            socket.local_addr().expect("connected").ip()
        })
    }
}

fn interface(lab: &Lab, source: IpAddr) -> String {
    let towards = lab.node.run(|| block_on(addresses::interface_towards(source)));
    towards.expect("a route").expect("a source elsewhere")
}

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

fn agree(said: &Explanation, from: Place, outcomes: &[Outcome]) -> Result<(), String> {
    let answers: Vec<&Answer> = outcomes.iter().filter_map(Outcome::answer).collect();
    let fits = match said.verdict {
        Verdict::Served => answers.len() == outcomes.len(),
        Verdict::Refused => outcomes.iter().all(|outcome| *outcome == Outcome::Refused),
        Verdict::Dropped => outcomes.iter().all(|outcome| *outcome == Outcome::Silent),
        // What becomes of it is not the table's business; its destination is as dialled.
        // Wherever a test expects that, it has somebody to answer.
        Verdict::Untouched => {
            answers.len() == outcomes.len()
                && answers.iter().all(|answer| answer.endpoint == said.to)
        }
    };
    if !fits {
        return Err(format!("explained as {}, but: {outcomes:?}", said.verdict));
    }
    let seen: BTreeSet<SocketAddr> = answers.iter().map(|answer| answer.endpoint).collect();
    let told: BTreeSet<SocketAddr> = said.endpoints.iter().map(|share| share.endpoint).collect();
    if said.verdict == Verdict::Served && seen != told {
        return Err(format!("endpoints {told:?} were explained, {seen:?} answered"));
    }
    let sum: f64 = said.endpoints.iter().map(|share| share.probability).sum();
    if said.verdict == Verdict::Served && (sum - 1.0).abs() > 1e-6 {
        return Err(format!("shares add up to {sum}"));
    }
    let wrong = answers.iter().find(|answer| !source_fits(said, from, answer));
    wrong.map_or(Ok(()), |answer| Err(format!("the source was explained otherwise: {answer:?}")))
}

/// The host may be masqueraded to the address it has already.
fn source_fits(said: &Explanation, from: Place, answer: &Answer) -> bool {
    let share = said.endpoints.iter().find(|share| share.endpoint == answer.endpoint);
    let masquerade = share.is_some_and(|share| share.masquerade);
    let changed = answer.seen.ip() != answer.client.ip();
    if from == Place::Host { masquerade || !changed } else { masquerade == changed }
}
