// SPDX-License-Identifier: Apache-2.0
//! Annotations that configure IPVS mode: ours, and kube-router's names for the same settings.
//!
//! An invalid value is reported as a [`Problem`](super::Problem) of the object, and the default is
//! used.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::address::{parse_cidr, parse_ip};
use super::problems::Problems;
use super::reason;
use crate::shortened::quoted;
use crate::source::annotations::{Annotations, Setting};
use kpr_core::model::GoDuration;
use kpr_core::model::ipvs_options::{
    ForwardingMethod, IpvsOptions, PlaceWeights, Scheduler, Thresholds, Tunnel, Weight,
};
use kpr_core::model::weights::{self, Weights};

const OWN: &str = "kube-proxy-rs.io/";
const KUBE_ROUTER: &str = "kube-router.io/service.";
/// What else kube-router knows behind that, for its rules and its BGP.
const KUBE_ROUTERS: [&str; 5] = [
    "advertise.clusterip",
    "advertise.externalip",
    "advertise.loadbalancerip",
    "local",
    "skiplbips",
];

/// It means something beside the upper one only.
const LOWER: &str = "kube-proxy-rs.io/lower-threshold";

/// The port of GUE (IANA: `gue`).
const GUE_PORT: u16 = 6080;

/// What annotations say about the weights of the endpoints of one slice.
#[derive(Debug, Default)]
pub(super) struct SliceWeights {
    by_address: Weights,
    all: Option<Weight>,
}

impl SliceWeights {
    pub(super) fn of(meta: &ObjectMeta, rules: &Annotations, problems: &mut Problems) -> Self {
        let mut weights = Self::default();
        for (key, text) in own(meta) {
            let mut value = Value::new(key, text, problems);
            if !value.is_allowed(rules) {
                continue;
            }
            match key.strip_prefix(OWN) {
                Some("weight") => weights.all = value.weight(),
                Some("weights") => weights.by_address = value.weights(),
                _ => value.is_unknown(),
            }
        }
        weights
    }

    pub(super) fn of_endpoint(&self, address: IpAddr) -> Option<Weight> {
        self.by_address.of(address).or(self.all)
    }
}

/// The settings of a Service; `None` if it has none that can be used, and is not counted.
pub(super) fn ipvs_options(
    meta: &ObjectMeta,
    rules: &Annotations,
    problems: &mut Problems,
) -> Option<Arc<IpvsOptions>> {
    let namespace = meta.namespace.as_deref().unwrap_or("default");
    let mut options = IpvsOptions {
        is_counted: rules.counted.has(namespace, meta.labels.as_ref()),
        ..IpvsOptions::default()
    };
    let (mut gue_port, mut lower) = (None, None);
    // Ours come last, so that they win over kube-router's.
    let aliases = annotations(meta).filter(|(key, _)| key.starts_with(KUBE_ROUTER));
    for (key, text) in aliases.chain(own(meta)) {
        let mut value = Value::new(key, text, problems);
        if !value.is_allowed(rules) {
            continue;
        }
        match key {
            "kube-router.io/service.scheduler" | "kube-proxy-rs.io/scheduler" => {
                options.scheduler = value.scheduler().or(options.scheduler);
            }
            "kube-router.io/service.schedflags" | "kube-proxy-rs.io/scheduler-flags" => {
                options.hashes_port = value.hashes_port().or(options.hashes_port);
            }
            // Its only value, and the only method that it has.
            "kube-router.io/service.dsr" => match text {
                "tunnel" => options.forwarding = ForwardingMethod::Tunnel(Tunnel::IpIp),
                _ => value.is_not("tunnel"),
            },
            "kube-proxy-rs.io/forwarding-method" => {
                options.forwarding = value.forwarding().unwrap_or(options.forwarding);
            }
            "kube-proxy-rs.io/one-packet" => options.one_packet = value.is_true(),
            "kube-proxy-rs.io/gue-port" => gue_port = value.port(),
            "kube-proxy-rs.io/weight" => options.weight = value.weight(),
            "kube-proxy-rs.io/weights" => options.weights = value.weights(),
            "kube-proxy-rs.io/topology-weights" => options.place_weights = value.place_weights(),
            "kube-proxy-rs.io/drain-limit" => {
                let (flag, most) = ("--service-max-drain-limit", rules.max_drain_limit);
                options.drain_limit = value.duration(flag, most);
            }
            "kube-proxy-rs.io/slow-start" => {
                let (flag, most) = ("--service-max-slow-start", rules.max_slow_start);
                let length = value.duration(flag, most);
                options.slow_start = length.filter(|length| !length.is_zero());
            }
            "kube-proxy-rs.io/persistence-netmask" => {
                (options.persistence_ipv4, options.persistence_ipv6) = value.netmasks();
            }
            "kube-proxy-rs.io/upper-threshold" => {
                options.thresholds.upper = value.threshold(Thresholds::MAX);
            }
            LOWER => lower = Some(text),
            // A client that is its own endpoint always gets its answer.
            "kube-router.io/service.hairpin" | "kube-router.io/service.hairpin.externalips" => {}
            _ => value.is_unknown(),
        }
    }
    if let (ForwardingMethod::Tunnel(Tunnel::Gue(port)), Some(wanted)) =
        (&mut options.forwarding, gue_port)
    {
        *port = wanted;
    }
    if let Some(text) = lower {
        let upper = options.thresholds.upper;
        options.thresholds.lower = Value::new(LOWER, text, problems).lower_threshold(upper);
    }
    (options != IpvsOptions::default()).then(|| Arc::new(options))
}

/// Whether an annotation is looked at here, if only to say that it is unknown.
pub(super) fn is_read(name: &str) -> bool {
    name.starts_with(OWN) || name.starts_with(KUBE_ROUTER)
}

fn annotations(meta: &ObjectMeta) -> impl Iterator<Item = (&str, &str)> {
    let all = meta.annotations.iter().flat_map(BTreeMap::iter);
    all.map(|(key, value)| (key.as_str(), value.as_str()))
}

fn own(meta: &ObjectMeta) -> impl Iterator<Item = (&str, &str)> {
    annotations(meta).filter(|(key, _)| key.starts_with(OWN))
}

/// An annotation that is being read.
struct Value<'a> {
    key: &'a str,
    text: &'a str,
    problems: &'a mut Problems,
}

impl<'a> Value<'a> {
    fn new(key: &'a str, text: &'a str, problems: &'a mut Problems) -> Self {
        Self {
            key,
            text: text.trim(),
            problems,
        }
    }

    fn problem(&mut self, message: String) {
        let field = format!("metadata.annotations[{}]", self.key);
        self.problems.add(&field, reason::ANNOTATION, message);
    }

    fn is_not(&mut self, wanted: &str) {
        let text = quoted(self.text);
        self.problem(format!("{text} must be {wanted}; it is ignored"));
    }

    /// Whether the operator allows it; one that says what is so without it does no harm.
    fn is_allowed(&mut self, rules: &Annotations) -> bool {
        let setting = Setting::of(self.key);
        let refused = setting.filter(|setting| !rules.allowed.contains(setting));
        if let Some(setting) = refused.filter(|_| self.text != "masquerade") {
            let message = "--service-annotations does not list";
            self.problem(format!("{message} {setting}; it is ignored"));
        }
        refused.is_none()
    }

    /// Its prefix is one of ours, but the name is unknown.
    fn is_unknown(&mut self) {
        let message = match self.key.strip_prefix(KUBE_ROUTER) {
            Some(name) if KUBE_ROUTERS.contains(&name) => {
                "a setting of kube-router that is not used here; it is ignored"
            }
            _ => "unknown annotation; it is ignored",
        };
        self.problem(message.to_owned());
    }

    fn scheduler(&mut self) -> Option<Scheduler> {
        let scheduler = self.text.parse().ok();
        if scheduler.is_none() {
            let names = Scheduler::ALL.map(Scheduler::as_str).join(", ");
            self.is_not(&format!("one of {names}"));
        }
        scheduler
    }

    /// Flags of `sh` and `mh`. To pass over endpoints of weight 0 (fallback) is no choice: those
    /// are the ones that leave, so it may be named but is always on.
    fn hashes_port(&mut self) -> Option<bool> {
        let mut hashes_port = false;
        for flag in list(self.text) {
            match flag {
                "port" | "sh-port" | "mh-port" | "flag-2" => hashes_port = true,
                "fallback" | "sh-fallback" | "mh-fallback" | "flag-1" => {}
                _ => {
                    self.is_not("a list of port and fallback");
                    return None;
                }
            }
        }
        Some(hashes_port)
    }

    fn weight(&mut self) -> Option<Weight> {
        let weight = weight(self.text);
        if weight.is_none() {
            self.is_not(&format!("a weight of 0 to {}", Weight::MAX));
        }
        weight
    }

    fn weights(&mut self) -> Weights {
        let parse = |item: &str| {
            let (range, share) = item.split_once('=')?;
            let range = range.trim();
            let range = match parse_ip(range) {
                Ok(address) => address.into(),
                Err(_) => parse_cidr(range).ok()?,
            };
            Some((range, weight(share.trim())?))
        };
        let mut items = list(self.text);
        let first = items.by_ref().take(weights::MAX_RANGES);
        let weights: Option<Weights> = first.map(parse).collect();
        let Some(weights) = weights else {
            let max = Weight::MAX;
            self.is_not(&format!(
                "a list of ADDRESS=WEIGHT or CIDR=WEIGHT with weights of 0 to {max}"
            ));
            return Weights::default();
        };
        if items.next().is_some() {
            let most = weights::MAX_RANGES;
            self.problem(format!("more than {most} weights; the rest is ignored"));
        }
        weights
    }

    /// What is not named has the weight of what is farther away. None may be 0: where nothing else
    /// is left, those that are far away answer.
    fn place_weights(&mut self) -> Option<PlaceWeights> {
        let (mut same_node, mut same_zone, mut other) = (None, None, None);
        for item in list(self.text) {
            let (place, share) = item.split_once('=').unwrap_or((item, ""));
            let weight = weight(share.trim()).filter(|weight| weight.get() > 0);
            match (place.trim(), weight) {
                ("same-node", Some(_)) => same_node = weight,
                ("same-zone", Some(_)) => same_zone = weight,
                ("other", Some(_)) => other = weight,
                _ => {
                    same_node = None;
                    same_zone = None;
                    break;
                }
            }
        }
        if same_node.or(same_zone).is_none() {
            let max = Weight::MAX;
            self.is_not(&format!(
                "same-node=WEIGHT, same-zone=WEIGHT and other=WEIGHT with a comma between them, one of the first two at least, with weights of 1 to {max}"
            ));
        }
        let other = other.or_else(|| Weight::new(1))?;
        let near = same_node.or(same_zone)?;
        let same_zone = same_zone.unwrap_or(other);
        let same_node = same_node.unwrap_or(near);
        Some(PlaceWeights {
            same_node,
            same_zone,
            other,
        })
    }

    fn duration(&mut self, flag: &str, most: Duration) -> Option<Duration> {
        let duration: Option<GoDuration> = self.text.parse().ok();
        let duration = duration.filter(|duration| !duration.is_negative());
        if duration.is_none() {
            self.is_not("a duration such as 30s, 10m or 0s");
        }
        let duration = duration.map(GoDuration::to_duration)?;
        if duration > most {
            let most_nanos = i64::try_from(most.as_nanos()).unwrap_or(i64::MAX);
            let limit = GoDuration::from_nanos(most_nanos);
            let text = quoted(self.text);
            let message = "which is used instead";
            self.problem(format!("{text} is longer than {flag}, {message}: {limit}"));
        }
        Some(duration.min(most))
    }

    /// Prefix lengths for IPv4 and IPv6.
    fn netmasks(&mut self) -> (Option<u8>, Option<u8>) {
        let (mut ipv4, mut ipv6) = (None, None);
        for item in list(self.text) {
            let (name, length) = item.split_once('/').unwrap_or((item, ""));
            let length: Option<u8> = length.parse().ok().filter(|length| *length > 0);
            match (name.trim(), length) {
                ("ipv4", Some(length @ ..=32)) => ipv4 = Some(length),
                ("ipv6", Some(length @ ..=128)) => ipv6 = Some(length),
                _ => {
                    self.is_not("ipv4/1 to ipv4/32, ipv6/1 to ipv6/128, or both with a comma");
                    return (None, None);
                }
            }
        }
        (ipv4, ipv6)
    }

    fn is_true(&mut self) -> bool {
        let is_true = self.text.parse();
        if is_true.is_err() {
            self.is_not("true or false");
        }
        is_true.unwrap_or_default()
    }

    /// 0, no limit, if it is none.
    fn threshold(&mut self, most: u32) -> u32 {
        let threshold = self.text.parse().ok();
        let threshold = threshold.filter(|threshold| (1..=most).contains(threshold));
        if threshold.is_none() {
            self.is_not(&format!("a number of connections of 1 to {most}"));
        }
        threshold.unwrap_or_default()
    }

    fn lower_threshold(&mut self, upper: u32) -> u32 {
        if upper > 0 {
            return self.threshold(upper);
        }
        let message = "means nothing without kube-proxy-rs.io/upper-threshold; it is ignored";
        self.problem(format!("{} {message}", quoted(self.text)));
        0
    }

    fn forwarding(&mut self) -> Option<ForwardingMethod> {
        Some(match self.text {
            "masquerade" => ForwardingMethod::Masquerade,
            "direct-routing" => ForwardingMethod::DirectRouting,
            "ipip" => ForwardingMethod::Tunnel(Tunnel::IpIp),
            "gre" => ForwardingMethod::Tunnel(Tunnel::Gre),
            "gue" => ForwardingMethod::Tunnel(Tunnel::Gue(NonZeroU16::new(GUE_PORT)?)),
            _ => {
                self.is_not("masquerade, direct-routing, ipip, gue or gre");
                return None;
            }
        })
    }

    fn port(&mut self) -> Option<NonZeroU16> {
        let port = self.text.parse().ok();
        if port.is_none() {
            self.is_not("a port of 1 to 65535");
        }
        port
    }
}

/// The items of a list with commas.
fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

fn weight(text: &str) -> Option<Weight> {
    text.parse().ok().and_then(Weight::new)
}

#[cfg(test)]
mod tests;
