//! How the binary reaches its API server: as kubeadm's DaemonSet, in a cluster, by --master alone.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use kubeweir::model::Family;
use kubeweir::testing::api_server::Ask;
use kubeweir::testing::lab::{NODE_NAME, Place};

use crate::objects::{service, slice};
use crate::site::{KUBEADM, METRICS, Proxy, Site};

/// Files of the DaemonSet's pod, in a mount namespace of its own; `$0` is the test's directory. The
/// conntrack limit, which a network namespace cannot change, is a file here.
const POD: &str = "
set -e
mount -t tmpfs pod /usr/local/bin && ln -s \"$(readlink $0/kube-proxy)\" /usr/local/bin/kube-proxy
mount -t tmpfs pod /var/lib && mkdir /var/lib/kube-proxy
cp $0/config.conf $0/kubeconfig.conf /var/lib/kube-proxy/
mount -t tmpfs pod /run
secret=/run/secrets/kubernetes.io/serviceaccount && mkdir -p $secret
cp $0/ca.crt $0/token $secret/ && echo -n default > $secret/namespace
mount --bind $0/max /proc/sys/net/netfilter/nf_conntrack_max
mount --bind $0/hashsize /sys/module/nf_conntrack/parameters/hashsize
exec \"$@\"
";

fn site() -> Site {
    let site = Site::lab();
    site.server.put(&service("web", 1));
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    site
}

/// Starts the command in the pod's mount namespace.
fn in_pod(site: &Site, command: &[&str]) -> Proxy {
    site.server.demand_token("service-account-token");
    site.server.write_kubeconfig(site.directory.path()).unwrap();
    fs::write(site.path("config.conf"), KUBEADM).unwrap();
    fs::write(site.path("kubeconfig.conf"), kubeconfig(site)).unwrap();
    for (file, value) in [("max", "1000"), ("hashsize", "100")] {
        fs::write(site.path(file), value).unwrap();
    }
    let shell = ["--mount", "--", "sh", "-c", POD, site.directory.path().to_str().unwrap()];
    let arguments: Vec<OsString> = shell.iter().chain(command).map(OsString::from).collect();
    site.launch_by(Path::new("unshare"), &arguments)
}

/// The ConfigMap's other key.
fn kubeconfig(site: &Site) -> String {
    let secret = "/var/run/secrets/kubernetes.io/serviceaccount";
    let server = site.server.url();
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- cluster:\n    certificate-authority: \
         {secret}/ca.crt\n    server: {server}\n  name: default\ncontexts:\n- context:\n    \
         cluster: default\n    namespace: default\n    user: default\n  name: default\n\
         current-context: default\nusers:\n- name: default\n  user:\n    tokenFile: {secret}/token\n"
    )
}

// B-260, B-261, B-051, B-072, B-209, B-211: kubeadm's command, ConfigMap and mounts as they are.
#[test]
fn daemon_set() {
    let site = site();
    let name = format!("--hostname-override={NODE_NAME}");
    let config = "--config=/var/lib/kube-proxy/config.conf";
    let proxy = in_pod(&site, &["/usr/local/bin/kube-proxy", config, &name]);
    site.wait_served(&proxy, 1, "pod-0");
    assert_eq!(site.get(METRICS, "/proxyMode").text(), "iptables");
    let requests = site.server.requests();
    assert!(requests.iter().all(|request| request.ask != Ask::Other), "{requests:?}");
    let agent = requests[0].headers["user-agent"].to_str().unwrap();
    assert!(agent.starts_with("kube-proxy/v1.37."), "{agent}");
    let accept = requests[0].headers["accept"].to_str().unwrap();
    assert!(accept.starts_with("application/vnd.kubernetes.protobuf"), "{accept}");
    assert_eq!(fs::read_to_string(site.path("max")).unwrap().trim(), "131072");
    assert_eq!(fs::read_to_string(site.path("hashsize")).unwrap().trim(), "32768");
}

// B-261: the pod's own service account, where the environment names the API server.
#[test]
fn in_cluster() {
    let site = site();
    let host = format!("KUBERNETES_SERVICE_HOST={}", site.server.address().ip());
    let port = format!("KUBERNETES_SERVICE_PORT={}", site.server.address().port());
    let proxy = in_pod(
        &site,
        &[
            "env",
            &host,
            &port,
            "/usr/local/bin/kube-proxy",
            "--proxy-mode=nftables",
            "--conntrack-max-per-core=0",
            &format!("--hostname-override={NODE_NAME}"),
        ],
    );
    site.wait_served(&proxy, 1, "pod-0");
}

// B-261, B-013: --master alone, without credentials; and over the server of a configuration's
// kubeconfig.
#[test]
fn master() {
    use kubeweir::testing::ApiServer;
    let mut site = site();
    site.server = site.node().run(|| ApiServer::start_plain([127, 0, 0, 1].into()).unwrap());
    for object in [crate::objects::node(), service("web", 1)] {
        site.server.put(&object);
    }
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    let (url, name) = (site.server.url(), format!("--hostname-override={NODE_NAME}"));
    let proxy = site.launch(&[
        &format!("--master={url}"),
        "--proxy-mode=nftables",
        "--conntrack-max-per-core=0",
        &name,
    ]);
    site.wait_served(&proxy, 1, "pod-0");
    proxy.terminate();
    let config = site.config(|_| {});
    let kubeconfig = fs::read_to_string(site.path("kubeconfig")).unwrap();
    fs::write(site.path("kubeconfig"), kubeconfig.replace(&url, "http://127.0.0.1:1")).unwrap();
    site.server.put(&slice("web", Family::V4, &[Place::Pod(2)]));
    let proxy = site.launch(&[&config, &format!("--master={url}"), &name]);
    site.wait_served(&proxy, 1, "pod-2");
}
