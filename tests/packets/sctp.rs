//! SCTP Services, on kernels that have SCTP: `make kernels` runs these in its guests.

use std::net::SocketAddr;

use kubeweir::model::{Family, Protocol};
use kubeweir::testing::lab::{PATIENCE, Place, PodNetwork, cluster_ip, external_ip, service};

use super::case::{Case, Expect, SCTP, Source, To, answer, case, check};
use super::matrix;
use super::rig::{Rig, Settings, both_families, web_slices};

const EVERYBODY: [Place; 4] = [Place::Pod(0), Place::Host, Place::Outside, Place::RemotePod(1)];

fn rig(network: PodNetwork, settings: Settings) -> Rig {
    let rig = Rig::new(network, settings);
    let served = rig.lab.serve_sctp();
    served.expect("a kernel with SCTP (module sctp), which not every kernel has; see make kernels");
    rig
}

fn checked(rig: &Rig, title: &str, cases: Vec<Case>) {
    let cases: Vec<Case> = cases.into_iter().map(|case| case.over(&SCTP)).collect();
    check(&rig.lab, title, &cases);
}

// B-125, B-126, B-127, B-129, B-130, B-131, B-133, B-134, B-141, B-142, B-143, B-144, B-148, B-149:
// table 5.4 over SCTP: ClusterIP, external IP, load balancer, NodePort, from everywhere.
#[test]
#[ignore = "needs a kernel with SCTP: make kernels"]
fn every_frontend_from_everywhere() {
    let settings = Settings::default();
    matrix::run_sctp(&mut rig(PodNetwork::Routed, settings), &settings);
}

// B-135, B-136, B-147, B-164: refused by ICMP without any endpoint. B-132, B-146: dropped under policy
// Local with endpoints elsewhere only. B-158: dropped outside of the source ranges.
#[test]
#[ignore = "needs a kernel with SCTP: make kernels"]
fn refused_dropped_and_restricted() {
    let mut rig = rig(PodNetwork::Routed, Settings::default());
    let full = |name: &str, n: usize, node_port| {
        let built = service(name, n).each(&SCTP, "http", 80, Some(node_port));
        both_families(built, |built, family| {
            built.external_ip(external_ip(n, family)).load_balancer_ip(external_ip(n + 20, family))
        })
    };
    let ranged = both_families(full("ranged", 3, 30_003), |built, family| {
        let range = match family {
            Family::V4 => "203.0.113.0/24",
            Family::V6 => "2001:db8:113::/64",
        };
        built.source_range(range.parse().expect("a literal range"))
    });
    let mut objects = vec![
        full("idle", 1, 30_001).object(),
        full("local", 2, 30_002).external_local().internal_local().object(),
        ranged.object(),
    ];
    objects.extend(web_slices("local", 8080, &[Place::RemotePod(0)]));
    objects.extend(web_slices("ranged", 8080, &[Place::Pod(0)]));
    rig.start(objects);
    let addresses = |n: usize, node_port| {
        [To::ClusterIp(n, 80), To::External(n, 80), To::External(n + 20, 80), To::Node(node_port)]
    };
    let mut cases = Vec::new();
    for to in addresses(1, 30_001) {
        let refused = |place| case("no endpoint", place, to, Expect::Refused);
        cases.extend(EVERYBODY.map(refused));
    }
    for to in addresses(2, 30_002) {
        cases.push(case("endpoints elsewhere", Place::Outside, to, Expect::Dropped));
    }
    let balancer = To::External(23, 80);
    let served = answer(&["pod-0:8080"], Source::Masqueraded);
    cases.push(case("in the ranges", Place::OutsideAt(5), balancer, served));
    cases.push(case("not in the ranges", Place::Outside, balancer, Expect::Dropped));
    checked(&rig, "refused, dropped, restricted", cases);
}

// B-169: a client keeps its endpoint. B-140 in spirit: an association goes on while endpoints come and
// go beside its own, and new ones are sent to what there is.
#[test]
#[ignore = "needs a kernel with SCTP: make kernels"]
fn affinity_and_associations_while_endpoints_change() {
    let mut rig = rig(PodNetwork::Routed, Settings::default());
    let all = [Place::Pod(0), Place::Pod(1), Place::RemotePod(0)];
    let sticky = service("sticky", 1).each(&SCTP, "http", 80, None).sticky(10_800);
    let plain = service("plain", 2).each(&SCTP, "http", 80, None);
    let slices =
        |pods| [web_slices("sticky", 8080, pods), web_slices("plain", 8080, pods)].concat();
    rig.start([vec![sticky.object(), plain.object()], slices(&all)].concat());
    let mut flows = Vec::new();
    for family in Family::BOTH {
        let to = |n| SocketAddr::new(cluster_ip(n, family), 80);
        let servers: std::collections::BTreeSet<String> = (0..12)
            .map(|_| {
                let mut flow = rig.lab.open(Place::Pod(2), Protocol::Sctp, to(1)).expect("opens");
                flow.ask(PATIENCE).answer().expect("an answer").server.clone()
            })
            .collect();
        assert_eq!(servers.len(), 1, "affinity: {servers:?}");
        let flow = rig.lab.open(Place::Pod(2), Protocol::Sctp, to(2)).expect("opens");
        flows.push((flow, to(2)));
    }
    let before: Vec<_> = flows.iter_mut().map(|(flow, _)| flow.ask(PATIENCE)).collect();
    rig.set(slices(&[Place::Pod(0)]));
    for ((flow, to), before) in flows.iter_mut().zip(&before) {
        assert_eq!(&flow.ask(PATIENCE), before, "{to}");
    }
    let cases = vec![case(
        "the endpoint that is left",
        Place::Pod(2),
        To::ClusterIp(2, 80),
        answer(&["pod-0:8080"], Source::Kept),
    )];
    checked(&rig, "after the change", cases);
    // Hairpin: the only endpoint dials its own Service.
    let hairpin = case(
        "hairpin",
        Place::Pod(0),
        To::ClusterIp(2, 80),
        answer(&["pod-0:8080"], Source::Masqueraded),
    );
    checked(&rig, "hairpin", vec![hairpin]);
}
