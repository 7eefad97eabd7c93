//! Files and command lines that distributions write, normalised: each starts, writes what upstream
//! writes, and says which of its settings do nothing.

use kubeweir::config::{NoteLevel, write_config};
use serde_json::{Value, json};

use crate::{DEFAULTS, completed, parse, resolve};

/// A file below tests/data/config/setups, what it amounts to on top of the defaults, and the settings
/// that are warned about or, as unknown, noted.
struct File {
    name: &'static str,
    text: &'static str,
    amounts_to: Value,
    said: &'static [&'static str],
}

macro_rules! file {
    ($name:literal, $amounts_to:expr, $said:expr) => {
        File {
            name: $name,
            text: include_str!(concat!("../data/config/setups/", $name, ".yaml")),
            amounts_to: $amounts_to,
            said: $said,
        }
    };
}

fn files() -> Vec<File> {
    vec![
        file!(
            "eks",
            json!({
                "clientConnection": {"kubeconfig": "/var/lib/kube-proxy/kubeconfig"},
                "metricsBindAddress": "0.0.0.0:10249",
                "oomScoreAdj": -998,
            }),
            &["unknown field \"udpIdleTimeout\""]
        ),
        file!(
            "k0s",
            json!({
                "clientConnection": {"kubeconfig": "/var/lib/kube-proxy/kubeconfig.conf"},
                "clusterCIDR": "10.244.0.0/16,fd00::/108",
                "metricsBindAddress": "0.0.0.0:10249",
                "conntrack": {"maxPerCore": 0},
            }),
            &[]
        ),
        file!(
            "talos",
            json!({
                "clientConnection": {"kubeconfig": "/etc/kubernetes/kubeconfig"},
                "clusterCIDR": "10.244.0.0/16",
                "conntrack": {"maxPerCore": 0},
                "mode": "nftables",
                "nodePortAddresses": ["primary"],
                "iptables": {"syncPeriod": "0s"},
                "nftables": {"syncPeriod": "30s"},
            }),
            &[]
        ),
        file!(
            "gardener",
            json!({
                "clientConnection": {"kubeconfig": "/var/lib/kube-proxy/kubeconfig"},
                "clusterCIDR": "100.96.0.0/11",
                "conntrack": {"maxPerCore": 524_288},
            }),
            &[]
        ),
        file!(
            "hand-made",
            json!({
                "clientConnection": {"kubeconfig": "/etc/kubernetes/kube-proxy.kubeconfig"},
                "clusterCIDR": "172.16.0.0/12",
                "mode": "ipvs",
                "iptables": {"syncPeriod": "0s"},
                "ipvs": {"scheduler": "rr", "syncPeriod": "30s", "minSyncPeriod": "5s"},
            }),
            &[
                "unknown field \"ipvs.masqueradeAll\"",
                "unknown field \"udpIdleTimeout\"",
                "ipvs.scheduler has no effect",
                "first document",
            ]
        ),
    ]
}

/// The defaults with changes on top, section by section.
fn on_defaults(amounts_to: &Value) -> Value {
    fn merge(into: &mut Value, change: &Value) {
        match (into, change) {
            (Value::Object(into), Value::Object(change)) => {
                change.iter().for_each(|(name, value)| merge(&mut into[name], value));
            }
            (into, change) => into.clone_from(change),
        }
    }
    let mut expected = serde_saphyr::from_str(DEFAULTS).expect("YAML");
    merge(&mut expected, amounts_to);
    expected
}

/// What `--write-config-to` writes, and what is said, the mode aside.
fn written(flags: &[&str], file: Option<&str>) -> (Value, Vec<String>) {
    let completed = completed(flags, file);
    let text = write_config(&completed.object).expect("encodes");
    let config = resolve(completed).unwrap_or_else(|error| panic!("{flags:?}: {error}"));
    let notes = config.notes.into_iter().filter(|note| {
        note.level != NoteLevel::Info || note.text.contains("strict decoding failed")
    });
    let said = notes.map(|note| note.text);
    let said = said.filter(|text| !text.starts_with("The proxy mode is not set")).collect();
    (serde_saphyr::from_str(&text).expect("YAML"), said)
}

#[test]
fn files_of_distributions_start() {
    for File { name, text, amounts_to, said } in files() {
        let (written, notes) = written(&["--config=x"], Some(text));
        assert_eq!(written, on_defaults(&amounts_to), "{name}");
        for expected in said {
            assert!(notes.iter().any(|note| note.contains(expected)), "{name}: {notes:?}");
        }
        assert_eq!(notes.is_empty(), said.is_empty(), "{name}: {notes:?}");
    }
}

#[test]
fn command_lines_of_distributions_start() {
    let k3s = [
        "--cluster-cidr=10.42.0.0/16,fd42::/56",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-close-wait=0s",
        "--conntrack-tcp-timeout-established=0s",
        "--healthz-bind-address=127.0.0.1",
        "--hostname-override=N1",
        "--kubeconfig=/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig",
        "--proxy-mode=iptables",
    ];
    let aks = [
        "--conntrack-max-per-core=0",
        "--metrics-bind-address=0.0.0.0:10249",
        "--detect-local-mode=InterfaceNamePrefix",
        "--pod-interface-name-prefix=azv",
        "--v=3",
    ];
    let microk8s = [
        "--kubeconfig=/var/snap/microk8s/current/credentials/proxy.config",
        "--cluster-cidr=10.1.0.0/16",
        "--healthz-bind-address=127.0.0.1",
        "--profiling=false",
    ];
    let cases: [(&[&str], Value); 3] = [
        (
            &k3s,
            json!({
                "clusterCIDR": "10.42.0.0/16,fd42::/56",
                "conntrack": {"maxPerCore": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s"},
                "healthzBindAddress": "127.0.0.1:10256",
                "hostnameOverride": "n1",
                "clientConnection": {"kubeconfig": "/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig"},
            }),
        ),
        (
            &aks,
            json!({
                "conntrack": {"maxPerCore": 0},
                "metricsBindAddress": "0.0.0.0:10249",
                "detectLocalMode": "InterfaceNamePrefix",
                "detectLocal": {"interfaceNamePrefix": "azv"},
                "logging": {"verbosity": 3},
            }),
        ),
        (
            &microk8s,
            json!({
                "clientConnection": {"kubeconfig": "/var/snap/microk8s/current/credentials/proxy.config"},
                "clusterCIDR": "10.1.0.0/16",
                "healthzBindAddress": "127.0.0.1:10256",
            }),
        ),
    ];
    for (flags, amounts_to) in cases {
        let (written, said) = written(flags, None);
        assert_eq!(written, on_defaults(&amounts_to), "{flags:?}");
        assert_eq!(said, Vec::<String>::new(), "{flags:?}");
    }
}

// The binary itself: exit status 0, and the same content in the file.
#[test]
fn the_binary_writes_what_the_files_amount_to() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    for File { name, text, amounts_to, .. } in files() {
        std::fs::write(path("config"), text).unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_kubeweir"))
            .args([
                format!("--config={}", path("config")),
                format!("--write-config-to={}", path("out")),
            ])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}: {output:?}");
        let written: Value =
            serde_saphyr::from_str(&std::fs::read_to_string(path("out")).unwrap()).expect("YAML");
        assert_eq!(written, on_defaults(&amounts_to), "{name}");
    }
}

// Gardener's clean-up: a file and the mode of before, which does not count beside the file.
#[test]
fn the_clean_up_of_gardener_starts() {
    let gardener = include_str!("../data/config/setups/gardener.yaml");
    let flags = ["--v=2", "--cleanup", "--config=F", "--proxy-mode=ipvs"];
    assert!(parse(&flags).flags.cleanup);
    let (written, _) = written(&flags, Some(gardener));
    assert_eq!(
        (&written["mode"], &written["logging"]["verbosity"]),
        (&json!("iptables"), &json!(2))
    );
}

// How people and scripts write flags: each means the same as the plain form beside it.
#[test]
fn odd_forms_of_flags() {
    let same: [(&[&str], &[&str]); 27] = [
        (&["-v4"], &["--v=4"]),
        (&["-v", "4"], &["--v=4"]),
        (&["-v=4"], &["--v=4"]),
        (&["--v", "4"], &["--v=4"]),
        (&["", "--v=4", ""], &["--v=4"]),
        (&["--cluster_cidr=10.0.0.0/8"], &["--cluster-cidr=10.0.0.0/8"]),
        (&["--cluster_cidr", "10.0.0.0/8"], &["--cluster-cidr=10.0.0.0/8"]),
        (&["--cluster-cidr", "10.0.0.0/8"], &["--cluster-cidr=10.0.0.0/8"]),
        (&["--masquerade-all"], &["--masquerade-all=true"]),
        (&["--masquerade_all"], &["--masquerade-all=true"]),
        (&["--masquerade-all=T"], &["--masquerade-all=true"]),
        (&["--masquerade-all", "--v", "2"], &["--masquerade-all=true", "--v=2"]),
        (&["--profiling=0"], &["--profiling=false"]),
        (&["--bind-address=", "--nodeport-addresses="], &[]),
        (&["--bind-address", "", "--nodeport-addresses", ""], &[]),
        (&["--healthz-bind-address=", "--metrics-bind-address="], &[]),
        (&["--hostname-override=", "--kubeconfig=", "--proxy-mode=", "--feature-gates="], &[]),
        (&["--proxy-mode=ipvs", "--proxy-mode=iptables"], &["--proxy-mode=iptables"]),
        (
            &["--nodeport-addresses=10.0.0.0/8", "--nodeport-addresses", "fd00::/8"],
            &["--nodeport-addresses=10.0.0.0/8,fd00::/8"],
        ),
        (
            &["--nodeport-addresses=\"10.0.0.0/8\",\"fd00::/8\""],
            &["--nodeport-addresses=10.0.0.0/8,fd00::/8"],
        ),
        (&["--oom-score-adj", "-5"], &["--oom-score-adj=-5"]),
        (&["--conntrack-min=0x400"], &["--conntrack-min=1024"]),
        (&["--conntrack-min=0o17"], &["--conntrack-min=15"]),
        (&["--conntrack-min=017"], &["--conntrack-min=15"]),
        (&["--conntrack-min=1_024"], &["--conntrack-min=1024"]),
        (&["--conntrack-max-per-core=+8"], &["--conntrack-max-per-core=8"]),
        (
            &["--kube-api-qps=1e1", "--kube-api-burst=0b11"],
            &["--kube-api-qps=10", "--kube-api-burst=3"],
        ),
    ];
    for (odd, plain) in same {
        assert_eq!(written(odd, None), written(plain, None), "{odd:?}");
    }
}

// Numbers of flags are Go's: what it refuses is refused in its words.
#[test]
fn numbers_that_no_flag_takes() {
    let line = |text: &str| ["kube-proxy".to_owned(), format!("--conntrack-min={text}")];
    for text in ["", "1e3", "1.0", "08", "1__0", "_1", "1_", "0x", "many", "2147483648"] {
        let exit = kubeweir::cli::parse(line(text)).expect_err(text);
        assert_eq!(exit.code, 1, "{text}");
        let complaint =
            format!("invalid argument {text:?} for \"--conntrack-min\" flag: strconv.ParseInt");
        assert!(exit.stderr.contains(&complaint) || text.is_empty(), "{}", exit.stderr);
    }
}

#[test]
fn rates_that_no_flag_takes() {
    let line = |text: &str| ["kube-proxy".to_owned(), format!("--kube-api-qps={text}")];
    for text in ["1e39", "-4e38", "many", "5s", " 5"] {
        let exit = kubeweir::cli::parse(line(text)).expect_err(text);
        let complaint = "flag: strconv.ParseFloat";
        assert!(exit.code == 1 && exit.stderr.contains(complaint), "{}", exit.stderr);
    }
    for text in ["inf", "-1", ".5", "1e-50", "NaN"] {
        kubeweir::cli::parse(line(text)).expect(text);
    }
}

// N7: the guide names each distribution, and the commands it says to write are taken.
#[test]
fn commands_of_the_guide_start() {
    let guide = include_str!("../../charts/README.md");
    for name in
        ["kops", "kube-up and GKE", "OpenShift", "EKS", "AKS", "RKE2", "k0s", "Talos", "microk8s"]
    {
        assert!(guide.contains(&format!("\n### {name}\n")), "{name}");
    }
    assert!(
        guide.contains("\n## k3s\n")
            && guide.contains("/go-runner")
            && guide.contains("/bin/bash -c")
    );
    let blocks = guide.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let blocks: Vec<&str> = blocks.filter(|block| block.contains("command: [")).collect();
    for block in &blocks {
        let pod: Value = serde_saphyr::from_str(block).expect("YAML");
        let command: Vec<String> = serde_json::from_value(pod["command"].clone()).expect("texts");
        assert_eq!(command[0], "/usr/local/bin/kube-proxy");
        let flags: Vec<&str> = command[1..].iter().map(String::as_str).collect();
        let (_, said) = written(&flags, None);
        assert_eq!(said, Vec::<String>::new(), "{block}");
    }
    assert_eq!(blocks.len(), 2, "kops, kube-up");
}
