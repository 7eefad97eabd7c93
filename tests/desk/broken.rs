//! One node of three is broken: `status` and `diff` name the node and the cause.

use super::cluster::Cluster;

#[test]
fn an_agent_that_hangs_while_endpoints_change() {
    let cluster = Cluster::start();
    cluster.freeze("node-b");
    cluster.server.delete(kubeweir::model::Kind::Service, "shop", "web");
    cluster.wait("the others' syncs", |cluster| {
        let diff = cluster.ask(&["diff"]);
        diff.stdout.contains("node-a, node-c: no difference")
    });
    let diff = cluster.ask(&["diff"]);
    diff.is(
        1,
        &[
            "node-b:\n  shop/web:http (ip)",
            "10.96.0.10:80/tcp is in the kernel, but not in the objects",
        ],
    );
    let status = cluster.ask(&["status"]);
    status.is(2, &["node-b: not reached: kubeweir status there: asking the agent at 127.0.0.1:10249/kubeweir/status: no answer within 5 s"]);
    cluster.thaw("node-b");
    cluster.wait("its sync", |cluster| cluster.ask(&["diff"]).code == 0);
}
