//! Transactions that are large, refused, or not permitted.

use std::time::Duration;

use kubeweir::kernel::{CommitError, Committed, DumpError, Kernel, Op, Rejection};
use kubeweir::model::Family;
use kubeweir::netlink::{NetlinkKernel, probe_ownership};
use kubeweir::ruleset::{ChainType, Element, Expr, Field, Hook, Key, Rule, Ruleset, Set, Verdict};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::commit::commit;
use crate::netns::in_netns;
use crate::shapes::{
    address, base_chain, chain, endpoint_fields, frontend, frontend_fields, map, table,
};

const FAMILY: Family = Family::V4;

/// Entries for frontends 0 to `n`, all with the same endpoint.
fn entries(n: u32) -> Vec<Element> {
    let endpoint = Key::new().address(address(FAMILY, 9)).port(8080);
    (0..n)
        .map(|n| {
            let service = std::net::Ipv4Addr::from(0x0a00_0000 + n);
            let key = Key::new().address(service.into());
            Element::data(key.protocol(kubeweir::model::Protocol::Tcp).port(80), endpoint)
        })
        .collect()
}

fn with_map(kernel: &mut NetlinkKernel) {
    let map = map("endpoints-1", frontend_fields(FAMILY), endpoint_fields(FAMILY));
    commit(kernel, FAMILY, vec![table(), Op::AddSet(map)]).unwrap();
}

fn rejection(result: Result<Committed, CommitError>) -> Rejection {
    match result {
        Err(CommitError::Rejected(rejection)) => rejection,
        other => panic!("not rejected: {other:?}"),
    }
}

#[test]
fn two_hundred_thousand_elements_are_one_transaction() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        with_map(&mut kernel);
        let elements = entries(200_000);
        let add = vec![Op::AddElements("endpoints-1".into(), elements.clone())];
        let committed = commit(&mut kernel, FAMILY, add).unwrap();
        // 40 bytes each, 1638 to a message.
        assert_eq!(committed.messages, 200_000_usize.div_ceil(1638) + 2);
        assert!(committed.bytes > 200_000 * 40 && committed.bytes < 200_000 * 41);
        let (_, dumped) = kernel.dump(FAMILY).unwrap().sets.remove("endpoints-1").unwrap();
        assert_eq!(dumped.len(), elements.len());
        assert!(elements.iter().all(|element| dumped.get(&element.key) == Some(element)));
        let delete = vec![Op::DeleteElements("endpoints-1".into(), elements)];
        commit(&mut kernel, FAMILY, delete).unwrap();
        assert!(kernel.dump(FAMILY).unwrap().sets["endpoints-1"].1.is_empty());
    });
}

#[test]
fn nothing_to_do_is_no_system_call() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        let nothing = Committed { messages: 0, bytes: 0, elapsed: Duration::ZERO };
        assert_eq!(commit(&mut kernel, FAMILY, vec![]).unwrap(), nothing);
        let empty = vec![Op::AddElements("missing".into(), vec![])];
        assert_eq!(commit(&mut kernel, FAMILY, empty).unwrap(), nothing);
    });
}

#[test]
fn a_refusal_names_operation_and_element_and_applies_nothing() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        with_map(&mut kernel);
        let seven = entries(8).split_off(7);
        commit(&mut kernel, FAMILY, vec![Op::AddElements("endpoints-1".into(), seven)]).unwrap();
        let before = kernel.dump(FAMILY).unwrap();

        let mut clashing = entries(5000);
        clashing[7].value =
            kubeweir::ruleset::Value::Data(Key::new().address(address(FAMILY, 1)).port(1));
        let fresh = chain("fresh");
        let ops = vec![fresh.clone(), Op::AddElements("endpoints-1".into(), clashing)];
        let other_data = rejection(commit(&mut kernel, FAMILY, ops));
        assert_eq!((other_data.op, other_data.element), (Some(1), Some(7)));
        assert_eq!(other_data.object, "add element endpoints-1");
        assert_eq!(other_data.errno, libc::EEXIST);
        assert_eq!(kernel.dump(FAMILY).unwrap(), before, "nothing is applied");

        // The missing element is in the second message of the operation.
        let mut present = entries(4000);
        let missing = present.remove(3000);
        let ops = vec![
            Op::DeleteElements("endpoints-1".into(), entries(8).split_off(7)),
            Op::AddElements("endpoints-1".into(), present.clone()),
            fresh,
            Op::DeleteElements("endpoints-1".into(), {
                let mut deleted = present.clone();
                deleted.insert(3333, missing);
                deleted
            }),
        ];
        let missing = rejection(commit(&mut kernel, FAMILY, ops));
        assert_eq!((missing.op, missing.element), (Some(3), Some(3333)));
        assert_eq!(missing.object, "delete element endpoints-1");
        assert_eq!(missing.errno, libc::ENOENT);
        assert_eq!(kernel.dump(FAMILY).unwrap(), before, "nothing is applied");
    });
}

#[test]
fn a_refused_range_is_counted_as_one_element() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        let set = Set { interval: true, ..Set::plain("ranges", vec![Field::Ipv4Addr]) };
        let at = |last| Key::new().address(address(FAMILY, last));
        let range = |first, last| Element { last: Some(at(last)), ..Element::member(at(first)) };
        let ranges = vec![range(0, 9), range(20, 29), range(25, 35)];
        let ops = vec![table(), Op::AddSet(set), Op::AddElements("ranges".into(), ranges)];
        let overlap = rejection(commit(&mut kernel, FAMILY, ops));
        assert_eq!((overlap.op, overlap.element), (Some(2), Some(2)));
        assert_eq!(overlap.errno, libc::EEXIST);
    });
}

#[test]
fn refusals_of_other_operations_name_them() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        let missing = rejection(commit(&mut kernel, FAMILY, vec![Op::DeleteTable]));
        assert_eq!((missing.op, missing.errno), (Some(0), libc::ENOENT));
        assert_eq!(missing.object, "delete table kube-proxy");

        let jump = Expr::Verdict(Verdict::Jump("nowhere".into()));
        let rule = Op::AddRule("a".into(), Rule { exprs: vec![jump], comment: None });
        let ops = vec![table(), chain("a"), chain("b"), rule, chain("c")];
        let dangling = rejection(commit(&mut kernel, FAMILY, ops));
        assert_eq!((dangling.op, dangling.element), (Some(3), None));
        assert_eq!((dangling.object.as_str(), dangling.errno), ("add rule a", libc::ENOENT));

        let loop_to =
            |to: &str| Rule { exprs: vec![Expr::Verdict(Verdict::Jump(to.into()))], comment: None };
        let ops = vec![
            table(),
            base_chain("base", ChainType::Filter, Hook::Input, 0),
            chain("a"),
            chain("b"),
            Op::AddRule("base".into(), loop_to("a")),
            Op::AddRule("a".into(), loop_to("b")),
            Op::AddRule("b".into(), loop_to("a")),
        ];
        let circle = rejection(commit(&mut kernel, FAMILY, ops));
        assert!(matches!(circle.errno, libc::ELOOP | libc::EMLINK), "{circle:?}");
        assert_eq!(kernel.dump(FAMILY).unwrap(), Ruleset::empty(FAMILY));
    });
}

#[test]
fn many_refusals_still_name_the_first() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        let mut ops = vec![table(), chain("a")];
        ops.extend((0..20_000).map(|n| Op::DeleteChain(format!("missing-{n}").into())));
        let first = rejection(commit(&mut kernel, FAMILY, ops));
        assert_eq!((first.op, first.errno), (Some(2), libc::ENOENT));
        commit(&mut kernel, FAMILY, vec![table()]).expect("no answer is left over");
    });
}

#[test]
fn without_the_capability_a_commit_says_so() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        let CapabilitySets { mut effective, permitted, inheritable } = capabilities(None).unwrap();
        effective.remove(CapabilitySet::NET_ADMIN);
        set_capabilities(None, CapabilitySets { effective, permitted, inheritable }).unwrap();
        match commit(&mut kernel, FAMILY, vec![table()]) {
            Err(CommitError::Unsent { bytes, source }) => {
                assert!(bytes > 0);
                assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied);
                assert!(source.to_string().contains("CAP_NET_ADMIN"), "{source}");
            }
            other => panic!("{other:?}"),
        }
        match kernel.dump(FAMILY) {
            Err(DumpError::Io { source, .. }) => {
                assert!(source.to_string().contains("CAP_NET_ADMIN"), "{source}");
            }
            other => panic!("{other:?}"),
        }
        probe_ownership().expect_err("nothing can be tried");
    });
}

#[test]
fn elements_of_lists_are_swapped_atomically() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        with_map(&mut kernel);
        let name = || "endpoints-1".into();
        let old = Element::data(frontend(FAMILY, 1), frontend(FAMILY, 2)).key;
        let endpoint = |last| Key::new().address(address(FAMILY, last)).port(80);
        let before = Element::data(old, endpoint(1));
        let after = Element::data(old, endpoint(2));
        commit(&mut kernel, FAMILY, vec![Op::AddElements(name(), vec![before.clone()])]).unwrap();
        let swap = vec![
            Op::DeleteElements(name(), vec![before]),
            Op::AddElements(name(), vec![after.clone()]),
        ];
        commit(&mut kernel, FAMILY, swap).unwrap();
        assert_eq!(kernel.dump_set(FAMILY, &name()).unwrap(), [after]);
    });
}
