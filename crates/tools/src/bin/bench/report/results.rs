// SPDX-License-Identifier: Apache-2.0
//! Reading and selecting results.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;

use crate::sample::Sample;

pub(super) const OURS: &str = "ours";
pub(super) const THEIRS: &str = "kube-proxy";
/// Another build of ours.
pub(super) const AGAINST: &str = "against";

/// The measured modes, and their names in the tables.
pub(super) const MODES: [(Mode, &str); 6] = [
    (IPVS, "IPVS (guest)"),
    (IPTABLES, "iptables"),
    (IPTABLES_NFT, "iptables, nft"),
    (NFTABLES, "nftables"),
    (RULES_IPTABLES, "IPVS, rules in iptables (qemu)"),
    (RULES_NFTABLES, "IPVS, rules in nftables (qemu)"),
];
/// IPVS mode in one kernel with its fixed rules in either way.
pub(super) const RULES_IPTABLES: Mode = Mode("ipvs", "rules-iptables");
pub(super) const RULES_NFTABLES: Mode = Mode("ipvs", "rules-nftables");
pub(super) const IPVS: Mode = Mode("ipvs", "legacy");
pub(super) const IPTABLES: Mode = Mode("iptables", "legacy");
pub(super) const IPTABLES_NFT: Mode = Mode("iptables", "nft");
/// kube-proxy has it, we do not: it is compared with iptables mode on the nft backend.
pub(super) const NFTABLES: Mode = Mode("nftables", "nft");

/// A proxy mode and an iptables backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mode(pub(super) &'static str, pub(super) &'static str);

/// Number of Services and of endpoints each; whether the real controller created the slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cluster {
    pub(super) endpoints: u64,
    pub(super) services: u64,
    pub(super) has_controller: bool,
}

impl Cluster {
    pub(super) const fn new(services: u64, endpoints: u64) -> Self {
        Self {
            endpoints,
            services,
            has_controller: false,
        }
    }

    fn of(result: &Value) -> Option<Self> {
        Some(Self {
            endpoints: result.get("endpoints")?.as_u64()?,
            services: result.get("services")?.as_u64()?,
            has_controller: result.get("controller").and_then(Value::as_bool) == Some(true),
        })
    }
}

impl std::fmt::Display for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {}", self.services, self.endpoints)?;
        if self.has_controller {
            f.write_str(" (controller)")?;
        }
        Ok(())
    }
}

pub(super) struct Results(Vec<Value>);

impl Results {
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let read =
            |path: &Path| std::fs::read_to_string(path).with_context(|| path.display().to_string());
        let mut results = Vec::new();
        if path.is_file() {
            for line in read(path)?.lines() {
                results.push(serde_json::from_str(line)?);
            }
            return Ok(Self(results));
        }
        let mut paths = BTreeSet::new();
        for entry in std::fs::read_dir(path)? {
            let path = entry?.path();
            if path.extension().is_some_and(|of| of == "json") {
                paths.insert(path);
            }
        }
        for path in paths {
            let mut value: Value =
                serde_json::from_str(&read(&path)?).with_context(|| path.display().to_string())?;
            if let (Some(object), Some(name)) = (value.as_object_mut(), path.file_stem()) {
                object.insert("name".to_owned(), name.to_string_lossy().into());
            }
            results.push(value);
        }
        anyhow::ensure!(!results.is_empty(), "no results in {}", path.display());
        Ok(Self(results))
    }

    /// One result per line.
    pub(super) fn to_lines(&self) -> String {
        let lines = self.0.iter().map(|result| format!("{result}\n"));
        lines.collect()
    }

    /// The clusters in which proxies were measured.
    pub(super) fn clusters(&self) -> BTreeSet<Cluster> {
        let cases = self.0.iter().filter(|result| is(result, "kind", "case"));
        cases.filter_map(Cluster::of).collect()
    }

    /// The runs of repeated cases.
    pub(super) fn runs(&self) -> BTreeSet<u64> {
        let runs = self
            .0
            .iter()
            .filter_map(|result| result.get("run")?.as_u64());
        runs.collect()
    }

    fn of_kind<'a>(&'a self, kind: &'a str, cluster: Cluster) -> impl Iterator<Item = &'a Value> {
        let all = self.0.iter();
        all.filter(move |result| is(result, "kind", kind) && Cluster::of(result) == Some(cluster))
    }

    /// The cases of a proxy.
    pub(super) fn cases<'a>(
        &'a self,
        mode: Mode,
        who: &'a str,
        cluster: Cluster,
    ) -> impl Iterator<Item = &'a Value> {
        self.of_kind("case", cluster)
            .filter(move |result| is_of(result, mode, who))
    }

    pub(super) fn sample(
        &self,
        mode: Mode,
        who: &str,
        cluster: Cluster,
        numbers: impl Fn(&Value) -> Vec<f64>,
    ) -> Sample {
        Sample::new(self.cases(mode, who, cluster).flat_map(numbers).collect())
    }

    /// Seconds after which a case of this proxy was stopped, if one was.
    pub(super) fn limit(&self, mode: Mode, who: &str, cluster: Cluster) -> Option<f64> {
        self.cases(mode, who, cluster)
            .find_map(|case| case.pointer("/ended/limitSeconds")?.as_f64())
    }

    pub(super) fn trace(&self, mode: Mode, who: &str) -> Option<&Value> {
        let mut all = self.0.iter();
        all.find(|result| is(result, "kind", "trace") && is_of(result, mode, who))
    }

    /// One number of each result of another kind than a case.
    pub(super) fn other(&self, kind: &str, cluster: Cluster, pointer: &str) -> Sample {
        let of_kind = self.of_kind(kind, cluster);
        Sample::new(
            of_kind
                .filter_map(|result| result.pointer(pointer)?.as_f64())
                .collect(),
        )
    }

    /// Numbers of the results whose names start with `name`.
    pub(super) fn named(&self, name: &str, numbers: impl Fn(&Value) -> Vec<f64>) -> Sample {
        let is_named = |result: &&Value| {
            let its = result.get("name").and_then(Value::as_str);
            its.is_some_and(|its| its.starts_with(name))
        };
        Sample::new(self.0.iter().filter(is_named).flat_map(numbers).collect())
    }
}

fn is(result: &Value, field: &str, text: &str) -> bool {
    result.get(field).and_then(Value::as_str) == Some(text)
}

fn is_of(result: &Value, mode: Mode, who: &str) -> bool {
    is(result, "mode", mode.0) && is(result, "backend", mode.1) && is(result, "who", who)
}
