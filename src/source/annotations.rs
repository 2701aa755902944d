// SPDX-License-Identifier: Apache-2.0
//! Which annotations of Services and EndpointSlices count. Whoever may write a Service writes its
//! annotations, so the operator decides what they can change (`--service-annotations`).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::Counted;

/// A setting that annotations may change, under our names and kube-router's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    DrainLimit,
    /// With the port of GUE.
    ForwardingMethod,
    /// Of UDP ports.
    OnePacket,
    PersistenceNetmask,
    Scheduler,
    SchedulerFlags,
    SlowStart,
    /// Connection limits.
    Thresholds,
    /// Of all endpoints, by address and by place.
    Weights,
}

impl Setting {
    pub const ALL: [Self; 9] = [
        Self::DrainLimit,
        Self::ForwardingMethod,
        Self::OnePacket,
        Self::PersistenceNetmask,
        Self::Scheduler,
        Self::SchedulerFlags,
        Self::SlowStart,
        Self::Thresholds,
        Self::Weights,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DrainLimit => "drain-limit",
            Self::ForwardingMethod => "forwarding-method",
            Self::OnePacket => "one-packet",
            Self::PersistenceNetmask => "persistence-netmask",
            Self::Scheduler => "scheduler",
            Self::SchedulerFlags => "scheduler-flags",
            Self::SlowStart => "slow-start",
            Self::Thresholds => "thresholds",
            Self::Weights => "weights",
        }
    }

    /// The setting that an annotation changes.
    pub(super) fn of(annotation: &str) -> Option<Self> {
        Some(match annotation {
            "kube-proxy-rs.io/drain-limit" => Self::DrainLimit,
            "kube-proxy-rs.io/forwarding-method"
            | "kube-proxy-rs.io/gue-port"
            | "kube-router.io/service.dsr" => Self::ForwardingMethod,
            "kube-proxy-rs.io/one-packet" => Self::OnePacket,
            "kube-proxy-rs.io/persistence-netmask" => Self::PersistenceNetmask,
            "kube-proxy-rs.io/scheduler" | "kube-router.io/service.scheduler" => Self::Scheduler,
            "kube-proxy-rs.io/scheduler-flags" | "kube-router.io/service.schedflags" => {
                Self::SchedulerFlags
            }
            "kube-proxy-rs.io/slow-start" => Self::SlowStart,
            "kube-proxy-rs.io/upper-threshold" | "kube-proxy-rs.io/lower-threshold" => {
                Self::Thresholds
            }
            "kube-proxy-rs.io/weight"
            | "kube-proxy-rs.io/weights"
            | "kube-proxy-rs.io/topology-weights" => Self::Weights,
            _ => return None,
        })
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Text that is not the name of a [`Setting`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown setting")]
pub struct UnknownSetting;

impl FromStr for Setting {
    type Err = UnknownSetting;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        all.find(|setting| setting.as_str() == name)
            .ok_or(UnknownSetting)
    }
}

/// What the operator allows annotations to do, and what he makes of labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotations {
    pub allowed: BTreeSet<Setting>,
    /// The longest drain limit; a longer one is cut to it.
    pub max_drain_limit: Duration,
    /// The longest slow start; a longer one is cut to it.
    pub max_slow_start: Duration,
    /// Services that have metrics of their own.
    pub counted: Counted,
}

impl Default for Annotations {
    /// All settings but the forwarding method, with which packets leave a node that nobody
    /// translated.
    fn default() -> Self {
        let all = Setting::ALL.into_iter();
        Self {
            allowed: all
                .filter(|setting| *setting != Setting::ForwardingMethod)
                .collect(),
            max_drain_limit: Duration::from_hours(24),
            max_slow_start: Duration::from_mins(15),
            counted: Counted::default(),
        }
    }
}

impl Annotations {
    /// Everything, without limits.
    pub fn unlimited() -> Self {
        Self {
            allowed: Setting::ALL.into(),
            max_drain_limit: Duration::MAX,
            max_slow_start: Duration::MAX,
            counted: Counted::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for setting in Setting::ALL {
            assert_eq!(setting.to_string().parse(), Ok(setting));
        }
        assert_eq!("weight".parse::<Setting>(), Err(UnknownSetting));
    }
}
