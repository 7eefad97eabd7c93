//! From a container of a pod to what an OCI runtime takes, as the kubelet and containerd do it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Capabilities, Container, SecurityContext};
use serde_json::{Value, json};

/// Where the volumes of the pod are on the host, by name.
pub type Volumes = BTreeMap<String, PathBuf>;

/// `config.json` of the OCI runtime specification. No network namespace: the runtime is started in
/// the node's, as for a pod with hostNetwork.
pub fn spec(container: &Container, args: &[String], root: &Path, volumes: &Volumes) -> Value {
    let security = container.security_context.clone().unwrap();
    let privileged = security.privileged == Some(true);
    let capabilities = capabilities(&security);
    let read_only = |yes: bool| if yes { "ro" } else { "rw" };
    let paths = |paths: &[&str]| if privileged { json!([]) } else { json!(paths) };
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
               "options": ["nosuid", "noexec", "nodev", read_only(!privileged)]}),
    ];
    for mount in container.volume_mounts.iter().flatten() {
        mounts.push(bind(
            &volumes[mount.name.as_str()],
            &mount.mount_path,
            mount.read_only == Some(true),
        ));
    }
    let account = "/var/run/secrets/kubernetes.io/serviceaccount";
    mounts.push(bind(&volumes["service-account"], account, true));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": [],
            "cwd": "/",
            "noNewPrivileges": security.allow_privilege_escalation == Some(false),
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
        },
        "root": {"path": root, "readonly": security.read_only_root_filesystem == Some(true)},
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}],
            "readonlyPaths": paths(&["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"]),
            "maskedPaths": paths(&["/proc/kcore", "/proc/keys", "/sys/firmware"]),
        },
    })
}

fn bind(source: &Path, destination: &str, read_only: bool) -> Value {
    let access = if read_only { "ro" } else { "rw" };
    json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", access]})
}

fn capabilities(security: &SecurityContext) -> Vec<String> {
    if security.privileged == Some(true) {
        // Everything; that is what this process has, and it cannot give more.
        let all = rustix::thread::capabilities(None).unwrap().permitted;
        return all.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
    }
    let Some(Capabilities { add, drop }) = security.capabilities.clone() else {
        panic!("a container that is not privileged says which capabilities it has");
    };
    assert_eq!(drop.unwrap_or_default(), ["ALL"]);
    add.unwrap_or_default().iter().map(|name| format!("CAP_{name}")).collect()
}
