//! Flags and file to one complete v1alpha1 object: defaults, precedence, platform defaults.
//!
//! Place in the flow: [`crate::cli`] parsed the flags and the caller read the file; the result is
//! judged by [`super::validate`] and resolved by [`super::resolve()`]. Pure: the file's text is an
//! argument.
//!
//! Source: behaviour reference 1.3 (value rules), 1.4 (precedence) and 2.2 (defaults).

use super::Note;
use super::address::{append_port, is_ipv4};
use super::decode::{DecodeError, decode};
use super::duration::GoDuration;
use super::feature_gates::{FeatureGates, LockedGate};
use super::flags::Flags;
use super::v1alpha1::{API_VERSION, Ipvs, KIND, KubeProxyConfiguration, Logging, Winkernel};

/// Port of the health server if none is written.
pub const HEALTHZ_PORT: i32 = 10256;
/// Port of the metrics server if none is written.
pub const METRICS_PORT: i32 = 10249;
/// The media type of requests if none is written.
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// The configuration before it was validated.
#[derive(Debug, Clone, PartialEq)]
pub struct Completed {
    /// The whole object, defaults in place; what `--write-config-to` and `/configz` show.
    pub object: KubeProxyConfiguration,
    /// `object.cluster_cidr` split at its commas. A list of one empty text if the flag was written
    /// with an empty value, which validation refuses.
    pub cluster_cidrs: Vec<String>,
    /// `--master`.
    pub master: String,
    /// No mode was written: which one is the default will change.
    pub mode_unset: bool,
    pub gates: FeatureGates,
    /// What to log once logging works.
    pub notes: Vec<Note>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum CompleteError {
    #[error("failed to decode the configuration file")]
    Decode(#[from] DecodeError),
    #[error("invalid --hostname-override")]
    NodeName(#[from] NodeNameError),
    #[error("invalid feature gates")]
    FeatureGates(#[from] LockedGate),
}

/// Completes the configuration from the flags, and from the text of the `--config` file if one was
/// given.
///
/// Errors: see [`CompleteError`]; upstream calls this phase "complete".
pub fn complete(flags: &Flags, file: Option<&str>) -> Result<Completed, CompleteError> {
    let mut notes = Vec::new();
    let (mut object, cluster_cidrs) = match file {
        Some(text) => from_file(text, flags, &mut notes)?,
        None => from_flags(flags),
    };
    object.api_version = API_VERSION.to_owned();
    object.kind = KIND.to_owned();
    if let Some(name) = override_from_flag(&flags.hostname_override)? {
        object.hostname_override = name;
    }
    own_flags(&mut object, flags);
    let mode_unset = object.mode.is_empty();
    platform_defaults(&mut object);
    clear_other_sync_periods(&mut object);
    let (gates, gate_notes) = FeatureGates::from_settings(&object.feature_gates)?;
    notes.extend(gate_notes);
    notes.extend(flags_without_effect(flags));
    let master = flags.master.clone();
    Ok(Completed { object, cluster_cidrs, master, mode_unset, gates, notes })
}

fn from_file(
    text: &str,
    flags: &Flags,
    notes: &mut Vec<Note>,
) -> Result<(KubeProxyConfiguration, Vec<String>), DecodeError> {
    let decoded = decode(text)?;
    if !decoded.ignored.is_empty() {
        notes.push(Note::info(format!(
            "Using lenient decoding as strict decoding failed: {}",
            decoded.ignored.join(", ")
        )));
    }
    if decoded.more {
        notes.push(Note::warning(
            "Only the first document of the configuration file counts; what follows it is ignored"
                .to_owned(),
        ));
    }
    let mut object = decoded.object;
    set_defaults(&mut object);
    logging_flags(&mut object.logging, flags);
    let cluster_cidrs = split_list(&object.cluster_cidr);
    Ok((object, cluster_cidrs))
}

fn split_list(text: &str) -> Vec<String> {
    if text.is_empty() { Vec::new() } else { text.split(',').map(str::to_owned).collect() }
}

/// Takes `value` where the field says nothing.
fn default_text(field: &mut String, value: &str) {
    if field.is_empty() {
        field.push_str(value);
    }
}

/// Takes `value` where the field says nothing.
fn default_duration(field: &mut GoDuration, seconds: i64) {
    if field.is_zero() {
        *field = GoDuration::from_secs(seconds);
    }
}

/// The defaults of a file (B-036 to B-040).
///
/// Deviation from upstream: a `minSyncPeriod` of zero stays zero and does not become 1 s (B-039,
/// B-193); one that is written is honoured.
pub fn set_defaults(object: &mut KubeProxyConfiguration) {
    default_text(&mut object.bind_address, "0.0.0.0");
    let v4 = is_ipv4(&object.bind_address);
    default_text(&mut object.healthz_bind_address, if v4 { "0.0.0.0" } else { "::" });
    default_text(&mut object.metrics_bind_address, if v4 { "127.0.0.1" } else { "::1" });
    object.healthz_bind_address = append_port(&object.healthz_bind_address, HEALTHZ_PORT);
    object.metrics_bind_address = append_port(&object.metrics_bind_address, METRICS_PORT);
    object.oom_score_adj.get_or_insert(-999);
    object.iptables.masquerade_bit.get_or_insert(14);
    object.iptables.localhost_node_ports.get_or_insert(true);
    object.nftables.masquerade_bit.get_or_insert(14);
    default_duration(&mut object.iptables.sync_period, 30);
    default_duration(&mut object.ipvs.sync_period, 30);
    default_duration(&mut object.nftables.sync_period, 30);
    default_duration(&mut object.config_sync_period, 15 * 60);
    default_duration(&mut object.logging.flush_frequency, 5);
    default_text(&mut object.logging.format, "text");
    let conntrack = &mut object.conntrack;
    conntrack.max_per_core.get_or_insert(32 * 1024);
    conntrack.min.get_or_insert(128 * 1024);
    conntrack.tcp_established_timeout.get_or_insert(GoDuration::from_secs(24 * 3600));
    conntrack.tcp_close_wait_timeout.get_or_insert(GoDuration::from_secs(3600));
    let client = &mut object.client_connection;
    default_text(&mut client.content_type, PROTOBUF);
    if client.qps == 0.0 {
        client.qps = 5.0;
    }
    if client.burst == 0 {
        client.burst = 10;
    }
}

fn from_flags(flags: &Flags) -> (KubeProxyConfiguration, Vec<String>) {
    let mut object = KubeProxyConfiguration::default();
    set_defaults(&mut object);
    process_flags(&mut object, flags);
    rule_flags(&mut object, flags);
    sync_flags(&mut object, flags);
    conntrack_flags(&mut object, flags);
    logging_flags(&mut object.logging, flags);
    let cluster_cidrs = match flags.is_given("cluster-cidr") {
        true => flags.cluster_cidr.split(',').map(str::to_owned).collect(),
        false => Vec::new(),
    };
    (object, cluster_cidrs)
}

/// What pflag makes of a list flag: an empty text is an empty list.
fn list(values: &[String]) -> Vec<String> {
    if values == [""] { Vec::new() } else { values.to_vec() }
}

/// Takes a flag's address, unless it is empty, which keeps the default (B-011).
fn address_flag(field: &mut String, flag: &str) {
    if !flag.is_empty() {
        flag.clone_into(field);
    }
}

/// Appends the deprecated port flag; 0 turns the server off (B-006 to B-010).
///
/// Upstream leaves this out under `--write-config-to` and then refuses bare IPs: mended.
fn with_port(address: &str, port: i32) -> String {
    if port == 0 { String::new() } else { append_port(address, port) }
}

/// Flags about the process and its servers.
fn process_flags(object: &mut KubeProxyConfiguration, flags: &Flags) {
    object.feature_gates = flags.gates().0;
    object.client_connection.kubeconfig = flags.kubeconfig.clone();
    object.client_connection.content_type = flags.kube_api_content_type.clone();
    object.client_connection.qps = flags.kube_api_qps;
    object.client_connection.burst = flags.kube_api_burst;
    address_flag(&mut object.bind_address, &flags.bind_address);
    address_flag(&mut object.healthz_bind_address, &flags.healthz_bind_address);
    address_flag(&mut object.metrics_bind_address, &flags.metrics_bind_address);
    object.healthz_bind_address = with_port(&object.healthz_bind_address, flags.healthz_port);
    object.metrics_bind_address = with_port(&object.metrics_bind_address, flags.metrics_port);
    object.bind_address_hard_fail = flags.bind_address_hard_fail;
    object.enable_profiling = flags.profiling;
    object.show_hidden_metrics_for_version = flags.show_hidden_metrics_for_version.clone();
    object.oom_score_adj = Some(flags.oom_score_adj);
    object.config_sync_period = flags.config_sync_period;
}

/// Flags about traffic.
fn rule_flags(object: &mut KubeProxyConfiguration, flags: &Flags) {
    object.mode = flags.proxy_mode.clone();
    object.iptables.masquerade_bit = Some(flags.iptables_masquerade_bit);
    object.iptables.localhost_node_ports = Some(flags.iptables_localhost_nodeports);
    match object.mode.as_str() {
        "nftables" => object.nftables.masquerade_all = flags.masquerade_all,
        _ => object.iptables.masquerade_all = flags.masquerade_all,
    }
    object.ipvs.scheduler = flags.ipvs_scheduler.clone();
    object.ipvs.exclude_cidrs = list(&flags.ipvs_exclude_cidrs);
    object.ipvs.strict_arp = flags.ipvs_strict_arp;
    object.ipvs.tcp_timeout = flags.ipvs_tcp_timeout;
    object.ipvs.tcp_fin_timeout = flags.ipvs_tcpfin_timeout;
    object.ipvs.udp_timeout = flags.ipvs_udp_timeout;
    object.detect_local_mode = flags.detect_local_mode.clone();
    object.detect_local.bridge_interface = flags.pod_bridge_interface.clone();
    object.detect_local.interface_name_prefix = flags.pod_interface_name_prefix.clone();
    object.cluster_cidr = flags.cluster_cidr.clone();
    object.node_port_addresses = list(&flags.nodeport_addresses);
}

/// Sync periods: only if written, and only for their family of modes (B-016, B-017).
fn sync_flags(object: &mut KubeProxyConfiguration, flags: &Flags) {
    let (period, minimum, prefix, values) = match object.mode.as_str() {
        "ipvs" => (
            &mut object.ipvs.sync_period,
            &mut object.ipvs.min_sync_period,
            "ipvs",
            (flags.ipvs_sync_period, flags.ipvs_min_sync_period),
        ),
        "nftables" => (
            &mut object.nftables.sync_period,
            &mut object.nftables.min_sync_period,
            "iptables",
            (flags.iptables_sync_period, flags.iptables_min_sync_period),
        ),
        _ => (
            &mut object.iptables.sync_period,
            &mut object.iptables.min_sync_period,
            "iptables",
            (flags.iptables_sync_period, flags.iptables_min_sync_period),
        ),
    };
    if flags.is_given(&format!("{prefix}-sync-period")) {
        *period = values.0;
    }
    if flags.is_given(&format!("{prefix}-min-sync-period")) {
        *minimum = values.1;
    }
}

fn conntrack_flags(object: &mut KubeProxyConfiguration, flags: &Flags) {
    let conntrack = &mut object.conntrack;
    conntrack.max_per_core = Some(flags.conntrack_max_per_core);
    conntrack.min = Some(flags.conntrack_min);
    conntrack.tcp_established_timeout = Some(flags.conntrack_tcp_timeout_established);
    conntrack.tcp_close_wait_timeout = Some(flags.conntrack_tcp_timeout_close_wait);
    conntrack.tcp_be_liberal = flags.conntrack_tcp_be_liberal;
    conntrack.udp_timeout = flags.conntrack_udp_timeout;
    conntrack.udp_stream_timeout = flags.conntrack_udp_timeout_stream;
}

/// Logging flags that were written win over the file; vmodule entries go in front (B-015).
fn logging_flags(logging: &mut Logging, flags: &Flags) {
    let given = |name| flags.is_given(name);
    if given("v") {
        logging.verbosity = flags.v;
    }
    if given("logging-format") {
        logging.format = flags.logging_format.clone();
    }
    if given("log-flush-frequency") {
        logging.flush_frequency = flags.log_flush_frequency;
    }
    logging.vmodule.splice(0..0, flags.vmodule.0.iter().cloned());
    if given("log-text-split-stream") {
        logging.options.text.split_stream = flags.log_text_split_stream;
    }
    if given("log-json-split-stream") {
        logging.options.json.split_stream = flags.log_json_split_stream;
    }
    if given("log-text-info-buffer-size") {
        logging.options.text.info_buffer_size = flags.log_text_info_buffer_size.clone();
    }
    if given("log-json-info-buffer-size") {
        logging.options.json.info_buffer_size = flags.log_json_info_buffer_size.clone();
    }
}

/// Flags that upstream has not; they hold with `--config` too.
fn own_flags(object: &mut KubeProxyConfiguration, flags: &Flags) {
    if flags.is_given("service-counters") {
        object.kubeweir.service_counters = flags.service_counters;
    }
    if flags.is_given("table-ownership") {
        object.kubeweir.table_ownership = Some(flags.table_ownership);
    }
    if flags.is_given("drop-invalid") {
        object.kubeweir.drop_invalid = flags.drop_invalid;
    }
    if flags.is_given("end-connections-after") {
        object.kubeweir.end_connections_after = flags.end_connections_after;
    }
}

/// Defaults that depend on the platform and on each other (B-042, B-043).
fn platform_defaults(object: &mut KubeProxyConfiguration) {
    default_text(&mut object.mode, "iptables");
    default_text(&mut object.detect_local_mode, "ClusterCIDR");
    if object.mode == "nftables" && object.node_port_addresses.is_empty() {
        object.node_port_addresses.push("primary".to_owned());
    }
}

/// Only the section of the active mode carries sync periods (section 1.5).
fn clear_other_sync_periods(object: &mut KubeProxyConfiguration) {
    let mode = object.mode.clone();
    let clear = |name: &str, period: &mut GoDuration, minimum: &mut GoDuration| {
        if mode != name {
            (*period, *minimum) = (GoDuration::ZERO, GoDuration::ZERO);
        }
    };
    clear("ipvs", &mut object.ipvs.sync_period, &mut object.ipvs.min_sync_period);
    clear("nftables", &mut object.nftables.sync_period, &mut object.nftables.min_sync_period);
    if mode == "ipvs" || mode == "nftables" {
        clear("iptables", &mut object.iptables.sync_period, &mut object.iptables.min_sync_period);
    }
}

/// The sync period and the minimum of the active mode.
pub fn sync_periods(object: &KubeProxyConfiguration) -> (GoDuration, GoDuration) {
    match object.mode.as_str() {
        "ipvs" => (object.ipvs.sync_period, object.ipvs.min_sync_period),
        "nftables" => (object.nftables.sync_period, object.nftables.min_sync_period),
        _ => (object.iptables.sync_period, object.iptables.min_sync_period),
    }
}

// Settings that are accepted because clusters carry them, and that do nothing here.

/// The bit that upstream takes if none is written.
const MASQUERADE_BIT: i32 = 14;
const NO_MARKS: &str = "packets are not marked to be masqueraded";
const OTHER_SYSTEM: &str = "it is for Windows";

/// A note for each setting that somebody chose and that does nothing.
pub fn without_effect(object: &KubeProxyConfiguration) -> Vec<Note> {
    let other = |bit: Option<i32>| bit.is_some_and(|bit| bit != MASQUERADE_BIT);
    let period = object.config_sync_period;
    let flush = object.logging.flush_frequency;
    let (iptables, nftables) = match object.mode.as_str() {
        "nftables" => (None, object.nftables.masquerade_bit),
        _ => (object.iptables.masquerade_bit, None),
    };
    let mut settings = vec![
        (
            period != GoDuration::from_secs(15 * 60),
            "configSyncPeriod",
            "changes are watched, and nothing is read again in between",
        ),
        (
            !object.show_hidden_metrics_for_version.is_empty(),
            "showHiddenMetricsForVersion",
            "no metric is hidden",
        ),
        (!object.port_range.is_empty(), "portRange", "upstream ignores it too"),
        (object.windows_run_as_service, "windowsRunAsService", OTHER_SYSTEM),
        (object.winkernel != Winkernel::default(), "winkernel", OTHER_SYSTEM),
        (other(iptables), "iptables.masqueradeBit", NO_MARKS),
        (other(nftables), "nftables.masqueradeBit", NO_MARKS),
        (flush != GoDuration::from_secs(5), "logging.flushFrequency", "lines are never held back"),
    ];
    if object.mode == "ipvs" {
        settings.extend(ipvs(&object.ipvs));
    }
    notes(&settings)
}

fn ipvs(section: &Ipvs) -> [(bool, &'static str, &'static str); 6] {
    const NO_IPVS: &str = "rules are nftables, also in mode ipvs";
    [
        (!section.scheduler.is_empty(), "ipvs.scheduler", NO_IPVS),
        (!section.exclude_cidrs.is_empty(), "ipvs.excludeCIDRs", NO_IPVS),
        (section.strict_arp, "ipvs.strictARP", NO_IPVS),
        (!section.tcp_timeout.is_zero(), "ipvs.tcpTimeout", NO_IPVS),
        (!section.tcp_fin_timeout.is_zero(), "ipvs.tcpFinTimeout", NO_IPVS),
        (!section.udp_timeout.is_zero(), "ipvs.udpTimeout", NO_IPVS),
    ]
}

/// The same for flags that have no field.
pub fn flags_without_effect(flags: &Flags) -> Vec<Note> {
    const UNREAD: &str = "machines are not told apart here";
    notes(&[
        (flags.is_given("boot-id-file"), "--boot-id-file", UNREAD),
        (flags.is_given("machine-id-file"), "--machine-id-file", UNREAD),
    ])
}

fn notes(settings: &[(bool, &str, &str)]) -> Vec<Note> {
    let chosen = settings.iter().filter(|(chosen, ..)| *chosen);
    chosen
        .map(|(_, name, reason)| Note::warning(format!("{name} has no effect: {reason}")))
        .collect()
}

// The name of this node (section 3.1).

/// Why there is no node name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NodeNameError {
    #[error("empty hostname-override is invalid")]
    BlankOverride,
    #[error("empty hostname is invalid")]
    Empty,
}

/// What `--hostname-override` says: trimmed and lower-cased; `None` if it was left empty.
///
/// Errors: only white space (B-019).
pub fn override_from_flag(flag: &str) -> Result<Option<String>, NodeNameError> {
    if flag.is_empty() {
        return Ok(None);
    }
    match normalised(flag) {
        name if name.is_empty() => Err(NodeNameError::BlankOverride),
        name => Ok(Some(name)),
    }
}

/// The effective name: the override, else the kernel's host name, trimmed and lower-cased.
///
/// Errors: nothing is left after trimming.
pub fn node_name(hostname_override: &str, kernel_hostname: &str) -> Result<String, NodeNameError> {
    let source = if hostname_override.is_empty() { kernel_hostname } else { hostname_override };
    match normalised(source) {
        name if name.is_empty() => Err(NodeNameError::Empty),
        name => Ok(name),
    }
}

fn normalised(name: &str) -> String {
    name.trim().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    // B-019: blanks are fatal, everything else is trimmed and lower-cased.
    #[test]
    fn names() {
        assert_eq!(override_from_flag(""), Ok(None));
        assert_eq!(override_from_flag(" \t"), Err(NodeNameError::BlankOverride));
        assert_eq!(override_from_flag(" Node-A "), Ok(Some("node-a".to_owned())));
        assert_eq!(node_name("", "Host\n"), Ok("host".to_owned()));
        assert_eq!(node_name("From-File", "host"), Ok("from-file".to_owned()));
        assert_eq!(node_name("  ", "host"), Err(NodeNameError::Empty));
        assert_eq!(node_name("", ""), Err(NodeNameError::Empty));
    }
}
