// SPDX-License-Identifier: Apache-2.0
//! Feature gates: all gates of kube-proxy v1.37 are accepted, four of them have an effect.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::gone;

/// The gates of kube-proxy; the first lines of the file say how to read the others.
const LIST: &str = include_str!("gates.txt");

static KNOWN: LazyLock<BTreeMap<&str, Gate>> = LazyLock::new(|| {
    let lines = LIST.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(Gate::parse).collect()
});

/// Gates whose value changes what this proxy does.
const EFFECTIVE: [&str; 4] = [
    "AllowServiceExternalIPs",
    "KubeProxyIPVS",
    "LoggingAlphaOptions",
    "LoggingBetaOptions",
];

/// Gates that set all others of a stage, but for those that are set themselves.
const GROUPS: [(&str, &str); 2] = [("AllAlpha", "alpha"), ("AllBeta", "beta")];

/// What kube-proxy knows of a gate.
#[derive(Debug)]
struct Gate {
    stage: &'static str,
    default: bool,
    /// It has only its default.
    is_locked: bool,
    /// Gates that must be on where it is.
    needs: Vec<&'static str>,
}

impl Gate {
    /// A line of the list, with the gate's name.
    fn parse(line: &'static str) -> Option<(&'static str, Self)> {
        let mut fields = line.split(' ');
        let (name, stage, default) = (fields.next()?, fields.next()?, fields.next()?);
        let gate = Self {
            stage,
            default: default.starts_with("true"),
            is_locked: default.ends_with('!'),
            needs: fields.collect(),
        };
        Some((name, gate))
    }
}

/// An invalid setting of a feature gate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// No component has such a gate.
    #[error("unrecognized feature gate: {}", with_advice(.0))]
    Unknown(String),
    /// The gate has only one value left.
    #[error("cannot set feature gate {gate} to {value}, feature is locked to {locked}")]
    Locked {
        /// The gate.
        gate: String,
        /// The requested value.
        value: bool,
        /// The value that it has.
        locked: bool,
    },
    /// The gate is on, also by default or by a group, and others that it needs are not.
    #[error("{gate} is enabled, but depends on features that are disabled: [{}]", disabled.join(" "))]
    Dependency {
        /// The gate.
        gate: &'static str,
        /// What it needs and has not.
        disabled: Vec<&'static str>,
    },
}

impl GateError {
    /// Whether it is about a gate.
    pub fn names(&self, gate: &str) -> bool {
        match self {
            Self::Unknown(named) | Self::Locked { gate: named, .. } => named == gate,
            Self::Dependency {
                gate: named,
                disabled,
            } => *named == gate || disabled.contains(&gate),
        }
    }
}

/// A gate, and what to do about it if it is known to be gone.
fn with_advice(gate: &str) -> String {
    gone::gate(gate).map_or_else(|| gate.to_owned(), |advice| format!("{gate} ({advice})"))
}

/// The gates that this proxy reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a gate")]
pub struct FeatureGates {
    /// `spec.externalIPs` counts.
    pub allow_service_external_ips: bool,
    /// ipvs mode may be chosen.
    pub kube_proxy_ipvs: bool,
    /// The options of log formats may be set.
    pub logging_alpha_options: bool,
    /// The JSON log format may be chosen.
    pub logging_beta_options: bool,
}

impl FeatureGates {
    /// Applies the configured values to the defaults of v1.37; the second part lists all that is
    /// wrong.
    pub fn from_map(configured: &BTreeMap<String, bool>) -> (Self, Vec<GateError>) {
        let mut errors: Vec<GateError> = configured
            .iter()
            .filter_map(|(gate, &value)| refusal(gate, value))
            .collect();
        let is_on = |name: &str| is_on(name, configured);
        // What kube-proxy checks last.
        if errors.is_empty() {
            errors.extend(KNOWN.iter().filter_map(|(gate, known)| {
                let mut disabled = known.needs.clone();
                disabled.retain(|needed| !is_on(needed));
                let is_broken = !disabled.is_empty() && is_on(gate);
                is_broken.then_some(GateError::Dependency { gate, disabled })
            }));
        }
        let gates = Self {
            allow_service_external_ips: is_on("AllowServiceExternalIPs"),
            kube_proxy_ipvs: is_on("KubeProxyIPVS"),
            logging_alpha_options: is_on("LoggingAlphaOptions"),
            logging_beta_options: is_on("LoggingBetaOptions"),
        };
        (gates, errors)
    }
}

/// Why a gate cannot have this value whatever the others have.
fn refusal(gate: &str, value: bool) -> Option<GateError> {
    match KNOWN.get(gate) {
        None => Some(GateError::Unknown(gate.to_owned())),
        Some(known) if known.is_locked && known.default != value => Some(GateError::Locked {
            gate: gate.to_owned(),
            value,
            locked: known.default,
        }),
        Some(_) => None,
    }
}

/// The value of a gate: its own, else that of its group, else its default.
fn is_on(name: &str, configured: &BTreeMap<String, bool>) -> bool {
    if let Some(value) = configured.get(name) {
        return *value;
    }
    let Some(gate) = KNOWN.get(name) else {
        return false;
    };
    let group = GROUPS.iter().find(|(_, stage)| *stage == gate.stage);
    let of_group = group.and_then(|(group, _)| configured.get(*group));
    of_group.copied().unwrap_or(gate.default)
}

/// Whether setting a gate changes anything here.
pub fn is_effective(gate: &str) -> bool {
    EFFECTIVE.contains(&gate) || GROUPS.iter().any(|(group, _)| *group == gate)
}

/// Whether a component has such a gate.
pub fn exists(gate: &str) -> bool {
    KNOWN.contains_key(gate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gates(pairs: &[(&str, bool)]) -> (FeatureGates, Vec<GateError>) {
        FeatureGates::from_map(&pairs.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect())
    }

    #[test]
    fn defaults_are_those_of_v1_37() {
        let (gates, errors) = gates(&[]);
        assert_eq!(errors, []);
        assert!(gates.allow_service_external_ips && gates.kube_proxy_ipvs);
        assert!(gates.logging_beta_options && !gates.logging_alpha_options);
    }

    #[test]
    fn an_unknown_gate_is_named() {
        let (_, errors) = gates(&[("NoSuchGate", true)]);
        assert_eq!(errors, [GateError::Unknown("NoSuchGate".to_owned())]);
        assert_eq!(
            errors[0].to_string(),
            "unrecognized feature gate: NoSuchGate"
        );
    }

    #[test]
    fn a_locked_gate_keeps_its_value() {
        assert_eq!(gates(&[("PreferSameTrafficDistribution", true)]).1, []);
        assert_eq!(
            gates(&[("PreferSameTrafficDistribution", false)]).1[0].to_string(),
            "cannot set feature gate PreferSameTrafficDistribution to false, feature is locked to true"
        );
    }

    #[test]
    fn gates_of_other_components_are_accepted() {
        for gate in [
            "KubeletInUserNamespace",
            "WatchListClient",
            "NativeHistograms",
        ] {
            assert_eq!(gates(&[(gate, true)]).1, [], "{gate}");
        }
    }

    #[test]
    fn groups_set_what_is_not_set_itself() {
        assert!(gates(&[("AllAlpha", true)]).0.logging_alpha_options);
        let explicit = gates(&[("AllAlpha", true), ("LoggingAlphaOptions", false)]).0;
        assert!(!explicit.logging_alpha_options);
        assert!(!gates(&[("AllBeta", false)]).0.logging_beta_options);
    }

    #[test]
    fn a_gate_that_is_on_needs_others() {
        let broken = |gate: &Gate, pairs: &[(&str, bool)]| {
            let found = gates(pairs).1;
            gate.needs
                .iter()
                .any(|needed| found.iter().any(|error| error.names(needed)))
        };
        let mut tried = 0;
        for (name, gate) in KNOWN.iter().filter(|(_, gate)| !gate.needs.is_empty()) {
            // Those that can be off.
            let all: Vec<(&str, bool)> = gate.needs.iter().map(|needed| (*needed, false)).collect();
            if gate.is_locked || gate.needs.iter().any(|needed| KNOWN[needed].is_locked) {
                continue;
            }
            tried += 1;
            let on = [all.clone(), vec![(name, true)]].concat();
            assert!(broken(gate, &on), "{name}");
            let off = [all, vec![(name, false)]].concat();
            let found = gates(&off).1;
            assert!(
                found.iter().all(
                    |error| !matches!(error, GateError::Dependency { gate, .. } if gate == name)
                ),
                "{name}: {found:?}"
            );
        }
        assert!(tried > 10, "{tried}");
        let (_, errors) = gates(&[("AllAlpha", true)]);
        assert!(!errors.is_empty(), "kube-proxy v1.37.2 refuses it");
        let text = errors[0].to_string();
        assert!(
            text.contains(" is enabled, but depends on features that are disabled: ["),
            "{text}"
        );
    }

    #[test]
    fn every_line_of_the_list_is_a_gate() {
        let lines = LIST.lines().filter(|line| !line.starts_with('#'));
        assert_eq!(KNOWN.len(), lines.count());
        for (name, gate) in KNOWN.iter() {
            let is_stage = ["alpha", "beta", "deprecated", "ga"].contains(&gate.stage);
            assert!(is_stage, "{name}: {gate:?}");
            let known = gate.needs.iter().all(|needed| exists(needed));
            assert!(known, "{name}: {gate:?}");
        }
    }

    #[test]
    fn effective_gates_are_known() {
        for gate in EFFECTIVE {
            assert!(!KNOWN[gate].is_locked, "{gate}");
        }
    }
}
