//! Feature gates: which exist, what they default to, which may be changed.
//!
//! Place in the flow: the map of names from file or flag becomes [`FeatureGates`] while the
//! configuration is completed. Knows nothing of what a gate does.
//!
//! Source: behaviour reference section 2.4. Unknown names only warn: a cluster may carry
//! gates of another release.

use std::collections::BTreeMap;

use super::Note;

/// A gate that means something to this program or that clusters set for kube-proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Gate {
    /// nftables mode exists.
    NfTablesProxyMode,
    /// ServiceCIDR objects are watched.
    MultiCidrServiceAllocator,
    /// Node hints and `PreferSameNode` are honoured.
    PreferSameTrafficDistribution,
    /// `spec.externalIPs` is honoured.
    AllowServiceExternalIps,
    /// `/statusz` exists.
    ComponentStatusz,
    /// `/flagz` exists.
    ComponentFlagz,
    /// NodePorts on loopback addresses in nftables mode, and refusals where they are not served.
    NfTablesLocalhostNodePorts,
    /// How upstream lists nftables, accepted: netlink is all there is here.
    NfTablesNetlink,
    /// ipvs mode exists.
    KubeProxyIpvs,
    /// Native histograms in the protobuf format.
    NativeHistograms,
    /// Log formatting only.
    ContextualLogging,
    /// JSON logging is allowed.
    LoggingBetaOptions,
    /// Split streams are allowed.
    LoggingAlphaOptions,
    /// Streaming lists are tried first.
    WatchListClient,
    /// Informer internals, accepted.
    InOrderInformers,
    /// Informer internals, accepted.
    AtomicFifo,
    /// Informer internals, accepted.
    UnlockWhileProcessingFifo,
    /// Informer internals, accepted.
    InOrderInformersBatchProcess,
    /// Client encoding, accepted.
    ClientsPreferCbor,
    /// Client encoding, accepted.
    ClientsAllowCbor,
}

/// How settled a gate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Off unless asked for.
    Alpha,
    /// On unless refused.
    Beta,
    /// On; `locked` ones cannot be turned off.
    Ga {
        /// Whether the value is fixed.
        locked: bool,
    },
    /// About to go, and on until then.
    Deprecated,
}

impl Stage {
    /// The value without any setting.
    fn default_value(self) -> bool {
        self != Stage::Alpha
    }
}

const LOCKED: Stage = Stage::Ga { locked: true };

/// Name and stage of every gate in release 1.37.
const GATES: [(Gate, &str, Stage); 20] = [
    (Gate::NfTablesProxyMode, "NFTablesProxyMode", LOCKED),
    (Gate::MultiCidrServiceAllocator, "MultiCIDRServiceAllocator", LOCKED),
    (Gate::PreferSameTrafficDistribution, "PreferSameTrafficDistribution", LOCKED),
    (Gate::AllowServiceExternalIps, "AllowServiceExternalIPs", Stage::Deprecated),
    (Gate::ComponentStatusz, "ComponentStatusz", Stage::Beta),
    (Gate::ComponentFlagz, "ComponentFlagz", Stage::Beta),
    (Gate::NfTablesLocalhostNodePorts, "KubeProxyNFTablesLocalhostNodePorts", Stage::Alpha),
    (Gate::NfTablesNetlink, "NFTablesNetlink", Stage::Beta),
    (Gate::KubeProxyIpvs, "KubeProxyIPVS", Stage::Deprecated),
    (Gate::NativeHistograms, "NativeHistograms", Stage::Beta),
    (Gate::ContextualLogging, "ContextualLogging", Stage::Beta),
    (Gate::LoggingBetaOptions, "LoggingBetaOptions", Stage::Beta),
    (Gate::LoggingAlphaOptions, "LoggingAlphaOptions", Stage::Alpha),
    (Gate::WatchListClient, "WatchListClient", Stage::Beta),
    (Gate::InOrderInformers, "InOrderInformers", LOCKED),
    (Gate::AtomicFifo, "AtomicFIFO", Stage::Beta),
    (Gate::UnlockWhileProcessingFifo, "UnlockWhileProcessingFIFO", Stage::Beta),
    (Gate::InOrderInformersBatchProcess, "InOrderInformersBatchProcess", Stage::Beta),
    (Gate::ClientsPreferCbor, "ClientsPreferCBOR", Stage::Alpha),
    (Gate::ClientsAllowCbor, "ClientsAllowCBOR", Stage::Alpha),
];

/// A locked gate was to be changed (B-049).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot set feature gate {name} to {value}, feature is locked to {}", !value)]
pub struct LockedGate {
    pub name: String,
    /// The value that was asked for.
    pub value: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureGates(BTreeMap<Gate, bool>);

impl Default for FeatureGates {
    fn default() -> Self {
        FeatureGates(GATES.iter().map(|(gate, _, stage)| (*gate, stage.default_value())).collect())
    }
}

impl FeatureGates {
    /// Applies settings: `AllAlpha` and `AllBeta` first, names of their own on top.
    ///
    /// Returns what is worth a log line: unknown names, and settings of gates that are GA or deprecated.
    /// Errors: a locked gate set against its value.
    pub fn from_settings(
        settings: &BTreeMap<String, bool>,
    ) -> Result<(FeatureGates, Vec<Note>), LockedGate> {
        let mut gates = FeatureGates::default();
        let mut notes = Vec::new();
        for (group, stage) in [("AllAlpha", Stage::Alpha), ("AllBeta", Stage::Beta)] {
            if let Some(&value) = settings.get(group) {
                gates.set_stage(stage, value);
            }
        }
        for (name, &value) in settings {
            if name == "AllAlpha" || name == "AllBeta" {
                continue;
            }
            match GATES.iter().find(|(_, known, _)| known == name) {
                None => notes.push(Note::warning(format!("unrecognized feature gate: {name}"))),
                Some((_, _, Stage::Ga { locked: true })) if !value => {
                    return Err(LockedGate { name: name.clone(), value });
                }
                Some((gate, _, stage)) => {
                    let settled = match stage {
                        Stage::Alpha | Stage::Beta => None,
                        Stage::Ga { .. } => Some("GA"),
                        Stage::Deprecated => Some("deprecated"),
                    };
                    notes.extend(settled.map(|stage| {
                        Note::warning(format!(
                            "Setting {stage} feature gate {name}={value}. It will be removed in a \
                             future release."
                        ))
                    }));
                    gates.0.insert(*gate, value);
                }
            }
        }
        Ok((gates, notes))
    }

    fn set_stage(&mut self, wanted: Stage, value: bool) {
        for (gate, _, stage) in GATES {
            if stage == wanted {
                self.0.insert(gate, value);
            }
        }
    }

    pub fn enabled(&self, gate: Gate) -> bool {
        self.0.get(&gate).copied().unwrap_or(false)
    }

    /// Every gate with its upstream name, stage and state, for the metric
    /// `kubernetes_feature_enabled`.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Stage, bool)> {
        GATES.iter().map(|(gate, name, stage)| (*name, *stage, self.enabled(*gate)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, bool)]) -> BTreeMap<String, bool> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    // B-049: only the locked value of a locked gate is accepted.
    #[test]
    fn locked_gates_keep_their_value() {
        let error = FeatureGates::from_settings(&settings(&[("NFTablesProxyMode", false)]))
            .expect_err("locked");
        assert_eq!(
            error.to_string(),
            "cannot set feature gate NFTablesProxyMode to false, feature is locked to true"
        );
        let (_, notes) = FeatureGates::from_settings(&settings(&[("NFTablesProxyMode", true)]))
            .expect("its own value");
        assert!(notes[0].text.starts_with("Setting GA feature gate"), "{notes:?}");
    }

    #[test]
    fn unknown_gates_only_warn() {
        let (gates, notes) = FeatureGates::from_settings(&settings(&[("Bogus", true)]))
            .expect("unknown names are no error");
        assert_eq!(gates, FeatureGates::default());
        assert_eq!(notes, [Note::warning("unrecognized feature gate: Bogus".to_owned())]);
    }

    #[test]
    fn groups_apply_before_single_gates() {
        let (gates, _) = FeatureGates::from_settings(&settings(&[
            ("AllAlpha", true),
            ("AllBeta", false),
            ("LoggingAlphaOptions", false),
            ("WatchListClient", true),
        ]))
        .expect("valid");
        assert!(gates.enabled(Gate::NfTablesLocalhostNodePorts));
        assert!(!gates.enabled(Gate::LoggingAlphaOptions));
        assert!(!gates.enabled(Gate::NativeHistograms));
        assert!(!gates.enabled(Gate::LoggingBetaOptions));
        assert!(gates.enabled(Gate::WatchListClient));
        assert!(gates.enabled(Gate::AllowServiceExternalIps));
    }

    // 1.37: what came, what moved.
    #[test]
    fn gates_of_the_release() {
        let defaults = FeatureGates::default();
        let of = |wanted: &str| {
            let (_, stage, enabled) =
                defaults.iter().find(|(name, ..)| *name == wanted).expect(wanted);
            (stage, enabled)
        };
        for (name, expected) in [
            ("KubeProxyNFTablesLocalhostNodePorts", (Stage::Alpha, false)),
            ("NFTablesNetlink", (Stage::Beta, true)),
            ("NativeHistograms", (Stage::Beta, true)),
            ("KubeProxyIPVS", (Stage::Deprecated, true)),
            ("AllowServiceExternalIPs", (Stage::Deprecated, true)),
        ] {
            assert_eq!(of(name), expected, "{name}");
        }
        let (_, notes) =
            FeatureGates::from_settings(&settings(&[("KubeProxyIPVS", true)])).expect("not locked");
        assert!(notes[0].text.starts_with("Setting deprecated feature gate"), "{notes:?}");
    }
}
