//! Start and end of the process: what ends it, what it leaves, what it finds.

use std::ffi::OsString;
use std::fs::{self, FileTimes, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::SystemTime;

use kubeweir::kernel::Kernel;
use kubeweir::model::{Family, Kind, Protocol};
use kubeweir::netlink::{NetlinkKernel, probe_ownership};
use kubeweir::ruleset::Ruleset;
use kubeweir::testing::lab::{NODE_NAME, Outcome, Place};
use kubeweir::testing::slowed;
use nix::sys::signal::Signal;

use crate::objects::{service, slice};
use crate::site::{HEALTHZ, Site};

fn web(site: &Site, endpoint: Place) {
    site.server.put(&service("web", 1));
    site.server.put(&slice("web", Family::V4, &[endpoint]));
}

/// What is in the table, however it is owned.
fn content(site: &Site) -> Ruleset {
    let dump = || NetlinkKernel::open().unwrap().dump(Family::V4).unwrap();
    Ruleset { table: None, ..site.node().run(dump) }
}

/// Whether another kube-proxy could not add to the table.
fn is_persistent(site: &Site) -> bool {
    let dump = || NetlinkKernel::open().unwrap().table(Family::V4).unwrap();
    site.node().run(dump).is_some_and(|table| table.persist)
}

/// What the next start makes of the table that an end in order left, as its log says it. An owned table
/// was let go of, and is replaced by one that is owned again; before Linux 6.9 nothing changed hands.
fn found_after_an_end(site: &Site) -> &'static str {
    let owned = site.node().run(|| probe_ownership().unwrap());
    if owned { "Replace" } else { "Adopted" }
}

fn name() -> String {
    format!("--hostname-override={NODE_NAME}")
}

// B-025, B-191, B-192: rules outlive the process, in a table that is anyone's; the next one takes
// them over, and takes away what is gone meanwhile. After a crash the table is still owned.
#[test]
fn rules_outlive_the_process() {
    let site = Site::lab();
    web(&site, Place::Pod(0));
    site.server.put(&service("old", 2));
    site.server.put(&slice("old", Family::V4, &[Place::Pod(2)]));
    let proxy = site.start();
    site.wait_served(&proxy, 1, "pod-0");
    site.wait_served(&proxy, 2, "pod-2");
    let before = content(&site);
    assert_eq!(proxy.terminate().code(), Some(143), "as a shell sees who died of SIGTERM");
    assert_eq!(content(&site), before);
    assert!(site.dial_cluster_ip(Place::Pod(1), Protocol::Tcp, 1).answer().is_some());

    site.server.delete(Kind::Service, "default", "old");
    let proxy = site.start();
    proxy.wait_log(&["\"Read the table\"", "IPv4", found_after_an_end(&site)]);
    site.wait_outcome(&proxy, Place::Pod(1), 2, |outcome| !matches!(outcome, Outcome::Answered(_)));
    assert!(site.dial_cluster_ip(Place::Pod(1), Protocol::Tcp, 1).answer().is_some());
    let is_handing_over = || content(&site).chains.values().any(|(c, _)| c.is_handover());
    site.wait(&proxy, "the end of the handover", || !is_handing_over());
    let before = content(&site);
    drop(proxy);
    assert_eq!(content(&site), before, "after SIGKILL");
    let proxy = site.start();
    proxy.wait_log(&["\"Read the table\"", "IPv4", "Adopted"]);
}

// B-025: as process 1 of a container, which the kernel spares unhandled signals.
#[test]
fn ends_as_process_1() {
    let site = Site::bare();
    let config = site.config(|_| {});
    let program = site.path("kube-proxy");
    let arguments = ["--pid", "--fork", "--mount-proc", "--kill-child"].map(OsString::from);
    let arguments = arguments.into_iter().chain([program.into(), config.into(), name().into()]);
    let proxy = site.launch_by(Path::new("unshare"), &arguments.collect::<Vec<_>>());
    site.wait(&proxy, "the first sync", || site.is_synced());
    proxy.agent.signal_children(Signal::SIGTERM);
    assert_eq!(proxy.end().0, Some(143));
    assert!(site.is_synced(), "rules stay");
}

// B-026, B-027: an edit in place and a rename end the process with 1, also before the first sync.
#[test]
fn a_changed_configuration_file_ends_it() {
    let site = Site::bare();
    let proxy = site.start();
    let file = site.path("config.conf");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text + "\n").unwrap();
    let (code, log) = proxy.end();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("configuration file was updated"), "{log}");
    assert!(!is_persistent(&site), "anyone may follow");

    site.server.hold(Kind::Node);
    let config = site.config(|_| {});
    let proxy = site.launch(&[&config, &name()]);
    site.server.wait("it asks for the Node", crate::site::SOON, |server| {
        server.open_streams(Kind::Node) == 1
    });
    fs::rename(&file, site.path("renamed")).unwrap();
    let (code, log) = proxy.end();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("renamed"), "{log}");
}

// A crash leaves an owned table. Whatever ends the next start in order lets go of it, even if that
// start never got as far as the table itself: kube-proxy may come next.
#[test]
fn any_end_in_order_leaves_a_plain_table() {
    let mut site = Site::bare();
    let config = site.config(|_| {});
    for (title, signal) in [("a signal", "-TERM"), ("an interrupt", "-INT")] {
        let proxy = site.start();
        // The second start replaces what the first one's end left, and then ends the handover.
        let is_handing_over = || content(&site).chains.values().any(|(c, _)| c.is_handover());
        site.wait(&proxy, "the table to be ours", || is_persistent(&site) && !is_handing_over());
        drop(proxy);
        assert!(is_persistent(&site), "a crash, {title}");
        let rules = content(&site);
        site.server.stop();
        let proxy = site.launch(&[&config, &name()]);
        proxy.wait_log(&["refused"]);
        site.node().feed("kill", &[signal, &proxy.agent.pid().to_string()], "").unwrap();
        let (code, log) = proxy.end();
        assert!(matches!(code, Some(130 | 143)), "{log}");
        assert!(!is_persistent(&site), "{title}: {log}");
        assert_eq!(content(&site), rules, "{title}");
        let Site { ground, server, .. } = &mut site;
        ground.node().run(|| server.resume().unwrap());
    }
}

// A start that failed before it got to the table, or was only to prepare the node, left a crashed
// predecessor's table persistent: kube-proxy could not follow.
#[test]
fn a_start_that_goes_no_further_leaves_a_plain_table() {
    let site = Site::bare();
    let busy = || {
        let bind = || std::net::TcpListener::bind("127.0.0.1:10256").unwrap();
        site.node().run(bind)
    };
    let none = ("init only", 0);
    for (title, code) in [("no connection", 1), ("a busy port", 1), none] {
        let proxy = site.start();
        // All of it: the table is ours before everything is in it.
        proxy.wait_synced();
        let is_handing_over = || content(&site).chains.values().any(|(c, _)| c.is_handover());
        site.wait(&proxy, "the table to be ours", || is_persistent(&site) && !is_handing_over());
        drop(proxy);
        assert!(is_persistent(&site), "a crash, {title}");
        let rules = content(&site);
        let config = site.config(|config| {
            config["bindAddressHardFail"] = true.into();
            config["healthzBindAddress"] = "127.0.0.1:10256".into();
            if title == "no connection" {
                config["clientConnection"]["kubeconfig"] = "/none".into();
            }
        });
        let _busy = (title == "a busy port").then(busy);
        let more: &[&str] = if code == 0 { &["--init-only"] } else { &[] };
        let name = name();
        let arguments = [&[&*config, &*name], more].concat();
        let (ended, log) = site.launch(&arguments).end();
        assert_eq!(ended, Some(code), "{title}: {log}");
        assert!(!is_persistent(&site), "{title}: {log}");
        assert_eq!(content(&site), rules, "{title}");
    }
}

// B-028, B-029: touched, chmod-ed, swapped as a ConfigMap volume is, deleted: it runs on.
#[test]
fn an_untouched_inode_does_not_end_it() {
    let site = Site::bare();
    site.config(|_| {});
    let volume = site.path("volume");
    for version in ["..1", "..2"] {
        fs::create_dir_all(volume.join(version)).unwrap();
        fs::copy(site.path("config.conf"), volume.join(version).join("config.conf")).unwrap();
    }
    symlink("..1", volume.join("..data")).unwrap();
    symlink("..data/config.conf", volume.join("config.conf")).unwrap();
    let config = format!("--config={}", volume.join("config.conf").display());
    let proxy = site.launch(&[&config, &name()]);
    site.wait(&proxy, "the first sync", || site.is_synced());

    let file = volume.join("..1/config.conf");
    let handle = fs::File::options().append(true).open(&file).unwrap();
    let now = SystemTime::now();
    handle.set_times(FileTimes::new().set_accessed(now).set_modified(now)).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    symlink("..2", volume.join("..next")).unwrap();
    fs::rename(volume.join("..next"), volume.join("..data")).unwrap();
    drop(handle);
    fs::remove_dir_all(volume.join("..1")).unwrap();
    // A change that is made known later was dealt with later: the events before did nothing.
    site.server.put(&service("later", 9));
    site.wait(&proxy, "a later change", || site.table(Family::V4).contains("default/later"));
    assert_eq!(site.get(HEALTHZ, "/livez").status, 200);
    assert!(proxy.agent.is_running());
}

// N4: nothing has loaded nf_conntrack yet; its settings are made all the same.
#[test]
#[ignore = "needs a kernel that has just booted: make kernels"]
fn starts_before_conntrack_is_loaded() {
    let module = std::path::Path::new("/sys/module/nf_conntrack");
    assert!(!module.exists(), "something has loaded nf_conntrack");
    let site = Site::bare();
    let proxy = site.start_config(|config| {
        config["conntrack"]["tcpEstablishedTimeout"] = "4321s".into();
    });
    let path = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
    let set = site.node().run(|| std::fs::read_to_string(path)).unwrap();
    assert_eq!(set.trim(), "4321");
    assert_eq!(proxy.terminate().code(), Some(143));
}

// B-024: what it prepares is there, no rule is, and it ends with 0.
#[test]
fn init_only() {
    let site = Site::bare();
    web(&site, Place::Pod(0));
    let timeout = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
    let config =
        site.config(|config| config["conntrack"]["tcpEstablishedTimeout"] = "1234s".into());
    let (code, log) = site.launch(&[&config, &name(), "--init-only"]).end();
    assert_eq!(code, Some(0), "{log}");
    let told = log.matches("System initialized and --init-only specified").count();
    assert_eq!(told, 2, "once per family: {log}");
    assert_eq!(site.node().run(|| fs::read_to_string(timeout).unwrap()).trim(), "1234");
    assert_eq!(site.node().feed("nft", &["list", "ruleset"], "").unwrap(), "");
}

// B-190: neither complete Services nor complete EndpointSlices alone write anything; out of order.
#[test]
fn nothing_is_written_before_both_lists_are_complete() {
    let site = Site::lab();
    web(&site, Place::Pod(0));
    site.server.hold(Kind::Service);
    site.server.hold(Kind::EndpointSlice);
    let config = site.config(|_| {});
    let proxy = site.launch(&[&config, &name()]);
    for kind in Kind::ALL {
        site.wait_watched(kind);
    }
    // Whether it waits or is only slow shows in what it does with a change of the Node.
    let mut node = crate::objects::node();
    node["metadata"]["labels"]["topology.kubernetes.io/zone"] = "a".into();
    site.server.put(&node);
    proxy.wait_log(&["The node's zone changed"]);
    assert_eq!(site.node().feed("nft", &["list", "tables"], "").unwrap(), "");
    site.server.release(Kind::EndpointSlice);
    node["metadata"]["labels"]["topology.kubernetes.io/zone"] = "b".into();
    site.server.put(&node);
    proxy.wait_log(&["The node's zone changed", "zone=\"b\""]);
    assert_eq!(site.node().feed("nft", &["list", "tables"], "").unwrap(), "");
    site.server.release(Kind::Service);
    site.wait_served(&proxy, 1, "pod-0");
}

// B-262, B-263: with CAP_NET_ADMIN alone after a privileged --init-only, no sysctl is written.
#[test]
fn without_privileges() {
    let site = Site::lab();
    web(&site, Place::Pod(0));
    let timeouts = |config: &mut serde_json::Value| {
        config["conntrack"]["tcpEstablishedTimeout"] = "4321s".into();
        config["oomScoreAdj"] = (-500).into();
    };
    let config = site.config(timeouts);
    let (code, log) = site.launch(&[&config, &name(), "--init-only"]).end();
    assert_eq!(code, Some(0), "{log}");
    let program = site.path("kube-proxy");
    let only = ["--bounding-set=-all,+net_admin", "--inh-caps=-all"].map(OsString::from);
    let arguments = only.into_iter().chain([program.into(), config.into(), name().into()]);
    let proxy = site.launch_by(Path::new("setpriv"), &arguments.collect::<Vec<_>>());
    site.wait_served(&proxy, 1, "pod-0");
    let status = fs::read_to_string(format!("/proc/{}/status", proxy.agent.pid())).unwrap();
    assert!(status.contains("CapEff:\t0000000000001000"), "{status}");
}

// B-174: who a client was sent to is remembered over the end in order and over a crash.
#[test]
fn affinity_outlives_the_process() {
    let site = Site::lab();
    let mut sticky = service("web", 1);
    sticky["spec"]["sessionAffinity"] = "ClientIP".into();
    sticky["spec"]["sessionAffinityConfig"] =
        serde_json::json!({ "clientIP": { "timeoutSeconds": 600 } });
    site.server.put(&sticky);
    let pods = [0, 1, 2].map(Place::RemotePod);
    site.server.put(&slice("web", Family::V4, &pods));
    let server = || {
        let outcome = site.dial_cluster_ip(Place::Pod(1), Protocol::Tcp, 1);
        outcome.answer().map(|answer| answer.server.clone())
    };
    let proxy = site.start();
    site.wait(&proxy, "an answer", || server().is_some());
    let first = server();
    let assert_same = || (0..12).for_each(|_| assert_eq!(server(), first));
    assert_same();
    proxy.terminate();
    assert_same();
    let proxy = site.start();
    proxy.wait_log(&["\"Read the table\"", "IPv4", found_after_an_end(&site)]);
    assert_same();
    drop(proxy);
    let proxy = site.start();
    proxy.wait_log(&["\"Read the table\"", "IPv4", "Adopted"]);
    assert_same();
}

// The plugin was waited for on the thread that hears signals: SIGTERM was seen a minute later.
#[test]
fn sigterm_is_heard_while_a_plugin_sleeps() {
    let site = Site::bare();
    let config = site.config(|_| {});
    let (path, sign) = (site.path("kubeconfig"), site.path("plugin-runs"));
    let mut kubeconfig: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    kubeconfig["users"][0]["user"] = serde_json::json!({ "exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
        "command": "sh", "args": ["-c", format!("touch {}; exec sleep 25", sign.display())],
    } });
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    let proxy = site.launch(&[&config, &format!("--hostname-override={NODE_NAME}")]);
    site.wait(&proxy, "the plugin", || sign.exists());
    let told = std::time::Instant::now();
    assert_eq!(proxy.terminate().code(), Some(143));
    assert!(told.elapsed() < slowed(std::time::Duration::from_secs(5)), "{:?}", told.elapsed());
}

// A plugin that failed at the start ended the agent. As in client-go, the next request runs it again.
#[test]
fn a_plugin_that_fails_at_first_delays_the_agent_and_does_not_end_it() {
    let site = Site::bare();
    site.server.demand_token("of-the-plugin");
    let config = site.config(|_| {});
    let (path, attempts) = (site.path("kubeconfig"), site.path("attempts"));
    let script = format!(
        "echo x >>{attempts}; if [ $(wc -l <{attempts}) -lt 3 ]; then \
         echo not-to-be-told; echo no way to the issuer >&2; exit 7; fi; \
         echo '{{\"apiVersion\": \"client.authentication.k8s.io/v1\", \"kind\": \"ExecCredential\", \
         \"status\": {{\"token\": \"of-the-plugin\"}}}}'",
        attempts = attempts.display()
    );
    let mut kubeconfig: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    kubeconfig["users"][0]["user"] = serde_json::json!({ "exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
        "command": "sh", "args": ["-c", script],
    } });
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    let proxy = site.launch(&[&config, &format!("--hostname-override={NODE_NAME}")]);
    proxy.wait_log(&["exec plugin \\\"sh\\\"", "exit status: 7", "no way to the issuer"]);
    proxy.wait_log(&["Synced", "IPv6"]);
    assert_eq!(std::fs::read_to_string(&attempts).unwrap().lines().count(), 3);
    assert!(!std::fs::read_to_string(site.path("log")).unwrap().contains("not-to-be-told"));
}
