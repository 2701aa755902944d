// SPDX-License-Identifier: Apache-2.0
//! Feature gates: all gates of kube-proxy v1.37 are accepted, four of them have an effect.

use std::collections::BTreeMap;

use super::gone;

/// One gate per line.
const KNOWN: &str = include_str!("gates.txt");

/// Gates whose value changes what this proxy does.
const EFFECTIVE: [&str; 4] = [
    "AllowServiceExternalIPs",
    "KubeProxyIPVS",
    "LoggingAlphaOptions",
    "LoggingBetaOptions",
];

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
        let mut errors = Vec::new();
        for (gate, &value) in configured {
            match known(gate) {
                Known::No => errors.push(GateError::Unknown(gate.clone())),
                Known::Locked(locked) if locked != value => {
                    errors.push(GateError::Locked {
                        gate: gate.clone(),
                        value,
                        locked,
                    });
                }
                Known::Free | Known::Locked(_) => {}
            }
        }
        let value = |gate: &str, group: &str, default: bool| {
            let group = configured.get(group).copied();
            configured.get(gate).copied().or(group).unwrap_or(default)
        };
        let gates = Self {
            allow_service_external_ips: value("AllowServiceExternalIPs", "", true),
            kube_proxy_ipvs: value("KubeProxyIPVS", "", true),
            logging_alpha_options: value("LoggingAlphaOptions", "AllAlpha", false),
            logging_beta_options: value("LoggingBetaOptions", "AllBeta", true),
        };
        (gates, errors)
    }
}

/// Whether setting a gate changes anything here.
pub fn is_effective(gate: &str) -> bool {
    EFFECTIVE.contains(&gate) || gate == "AllAlpha" || gate == "AllBeta"
}

/// Whether a component has such a gate.
pub fn exists(gate: &str) -> bool {
    known(gate) != Known::No
}

/// What the list says of a gate.
#[derive(Debug, PartialEq, Eq)]
enum Known {
    /// Nothing: it does not exist.
    No,
    /// It may be set.
    Free,
    /// It has only this value.
    Locked(bool),
}

fn known(gate: &str) -> Known {
    for line in KNOWN.lines().filter(|line| !line.starts_with('#')) {
        match line.split_once('=') {
            None if line == gate => return Known::Free,
            Some((name, value)) if name == gate => return Known::Locked(value == "true"),
            _ => {}
        }
    }
    Known::No
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
            "AllBeta",
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
    fn effective_gates_are_known() {
        for gate in EFFECTIVE {
            assert_eq!(known(gate), Known::Free, "{gate}");
        }
    }
}
