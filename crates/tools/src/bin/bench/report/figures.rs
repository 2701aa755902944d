// SPDX-License-Identifier: Apache-2.0
//! All figures, ours and kube-proxy's, by cluster and mode.

use std::fmt::Write as _;

use serde_json::Value;

use super::results::{IPTABLES_NFT, MODES, Mode, NFTABLES, OURS, Results, THEIRS};
use crate::sample::{Sample, short};

/// Where a result has the numbers of a figure.
#[derive(Clone, Copy)]
enum Place {
    /// The number at this JSON pointer.
    At(&'static str),
    /// The maximum of these.
    Maximum(&'static [&'static str]),
    /// A field of each change of a section.
    Changes(&'static str, &'static str),
    /// A number of the idle section, per minute.
    PerMinute(&'static str),
    /// The sum of an object's values.
    Sum(&'static str),
    /// Latency of a first packet beyond that without a proxy, in each turn.
    FirstPacket(&'static str),
}

/// A measured quantity.
#[derive(Clone, Copy)]
pub(super) struct Figure {
    id: &'static str,
    pub(super) what: &'static str,
    pub(super) unit: &'static str,
    factor: f64,
    place: Place,
}

impl Figure {
    const fn seconds(id: &'static str, what: &'static str, place: Place) -> Self {
        Self::new(id, what, "s", 1.0, place)
    }

    const fn millis(id: &'static str, what: &'static str, place: Place) -> Self {
        Self::new(id, what, "ms", 1e3, place)
    }

    const fn micros(id: &'static str, what: &'static str, place: Place) -> Self {
        Self::new(id, what, "us", 1.0, place)
    }

    const fn megabytes(id: &'static str, what: &'static str, place: Place) -> Self {
        Self::new(id, what, "MB", 1.0 / 1024.0, place)
    }

    const fn count(id: &'static str, what: &'static str, place: Place) -> Self {
        Self::new(id, what, "", 1.0, place)
    }

    const fn new(
        id: &'static str,
        what: &'static str,
        unit: &'static str,
        factor: f64,
        place: Place,
    ) -> Self {
        Self {
            id,
            what,
            unit,
            factor,
            place,
        }
    }

    pub(super) fn numbers(&self, result: &Value) -> Vec<f64> {
        let number = |at: &str| result.pointer(at).and_then(Value::as_f64);
        let numbers: Vec<f64> = match self.place {
            Place::At(at) => number(at).into_iter().collect(),
            Place::Maximum(all) => {
                let maximum = all.iter().filter_map(|at| number(at)).reduce(f64::max);
                maximum.into_iter().collect()
            }
            Place::Changes(section, field) => {
                let changes = result.pointer(section).and_then(Value::as_array);
                let changes = changes.into_iter().flatten();
                changes.filter_map(|of| of.get(field)?.as_f64()).collect()
            }
            Place::PerMinute(at) => number("/idle/sectionSeconds")
                .zip(number(at))
                .map(|(seconds, number)| number * 60.0 / seconds)
                .into_iter()
                .collect(),
            Place::Sum(at) => {
                let all = result.pointer(at).and_then(Value::as_object);
                let sum = all.map(|all| {
                    all.values()
                        .filter_map(Value::as_f64)
                        .fold(0.0, |a, b| a + b)
                });
                sum.into_iter().collect()
            }
            Place::FirstPacket(row) => {
                let turns = result.pointer("/firstPacket").and_then(|of| of.get(row));
                let turns = turns.and_then(|of| of.get("more")?.as_array());
                let turns = turns.into_iter().flatten();
                turns.filter_map(Value::as_f64).collect()
            }
        };
        numbers
            .into_iter()
            .map(|number| number * self.factor)
            .collect()
    }
}

const RSS: &[&str] = &[
    "/cold/memory/rssKb",
    "/endpoint/memory/rssKb",
    "/service/memory/rssKb",
    "/burst/memory/rssKb",
    "/idle/memory/rssKb",
];
const PEAK: &[&str] = &[
    "/cold/memory/peakKb",
    "/burst/memory/peakKb",
    "/idle/memory/peakKb",
];

pub(super) const COLD: Figure = Figure::seconds(
    "cold_start",
    "cold start until everything is programmed",
    Place::At("/cold/seconds"),
);
pub(super) const ENDPOINT: Figure = Figure::millis(
    "endpoint_change",
    "one endpoint changed, API write to kernel",
    Place::Changes("/endpoint/changes", "seconds"),
);
pub(super) const NEW_SERVICE: Figure = Figure::millis(
    "new_service",
    "new Service, API write to first connection",
    Place::Changes("/service/changes", "newSeconds"),
);
pub(super) const BURST_CPU: Figure = Figure::seconds(
    "burst_cpu",
    "burst of 1,000 changes, CPU of the proxy and its programs",
    Place::At("/burst/cpuSeconds"),
);
pub(super) const MEMORY: Figure = Figure::megabytes(
    "memory",
    "resident memory, maximum over all parts",
    Place::Maximum(RSS),
);
pub(super) const RULES: Figure =
    Figure::count("rules", "rules, IPv4", Place::At("/cold/kernel/rules"));
pub(super) const PLAIN_PACKET: Figure = Figure::micros(
    "first_packet_plain",
    "first packet, forwarded, no Service: added latency",
    Place::FirstPacket("forwarded, no Service"),
);
pub(super) const SERVICE_PACKET: Figure = Figure::micros(
    "first_packet_service",
    "first packet, forwarded, to a Service: added latency",
    Place::FirstPacket("forwarded, last Service"),
);
pub(super) const IDLE_PROCESSES: Figure = Figure::count(
    "idle_processes",
    "idle minute, processes and threads started (guest only)",
    Place::PerMinute("/idle/forks"),
);
/// Memory once the proxy is idle.
pub(super) const IDLE_MEMORY: Figure = Figure::megabytes(
    "idle_memory",
    "resident memory after the idle part",
    Place::At("/idle/memory/rssKb"),
);

pub(super) const BURST_API: Figure = Figure::count(
    "burst_api_received",
    "burst of 1,000 changes, bytes from the API server",
    Place::At("/burst/work/apiBytesReceived"),
);
/// Of all changes of a case together, with the Services that are made for them.
pub(super) const MESSAGES: Figure = Figure::count(
    "endpoint_messages",
    "endpoint changes, netlink messages sent (own metric)",
    Place::At("/endpoint/work/messagesSent"),
);
pub(super) const BYTES: Figure = Figure::count(
    "endpoint_bytes",
    "endpoint changes, netlink bytes sent (own metric)",
    Place::At("/endpoint/work/bytesSent"),
);

pub(super) const FIGURES: [Figure; 36] = [
    COLD,
    Figure::seconds(
        "cold_last_answers",
        "cold start until the last Service answers",
        Place::At("/cold/lastServiceAnswersSeconds"),
    ),
    Figure::seconds(
        "cold_cpu",
        "cold start, CPU of the proxy and its programs",
        Place::At("/cold/cpuSeconds"),
    ),
    ENDPOINT,
    MESSAGES,
    BYTES,
    NEW_SERVICE,
    Figure::millis(
        "removed_service",
        "Service removed, API write to refusal",
        Place::Changes("/service/changes", "removedSeconds"),
    ),
    Figure::seconds(
        "burst_effect",
        "burst of 1,000 changes, first write to effect of the last",
        Place::At("/burst/effectSeconds"),
    ),
    Figure::seconds(
        "burst_written",
        "of which API writes",
        Place::At("/burst/writtenSeconds"),
    ),
    BURST_CPU,
    Figure::seconds(
        "idle_cpu",
        "idle minute, CPU of the proxy and its programs",
        Place::PerMinute("/idle/sectionCpuSeconds"),
    ),
    IDLE_PROCESSES,
    Figure::count(
        "idle_messages_sent",
        "idle minute, netlink messages sent (own metric)",
        Place::PerMinute("/idle/work/messagesSent"),
    ),
    Figure::count(
        "idle_messages_received",
        "idle minute, netlink messages received (own metric)",
        Place::PerMinute("/idle/work/messagesReceived"),
    ),
    Figure::megabytes(
        "cold_memory",
        "resident memory after the cold start",
        Place::At("/cold/memory/rssKb"),
    ),
    MEMORY,
    IDLE_MEMORY,
    Figure::megabytes("peak_memory", "peak memory", Place::Maximum(PEAK)),
    RULES,
    Figure::count("chains", "chains, IPv4", Place::At("/cold/kernel/chains")),
    Figure::count("sets", "ipsets", Place::At("/cold/kernel/sets")),
    Figure::count(
        "set_entries",
        "ipset entries",
        Place::Sum("/cold/kernel/entries"),
    ),
    Figure::count(
        "virtual_servers",
        "IPVS virtual servers",
        Place::At("/cold/kernel/virtualServers"),
    ),
    Figure::count(
        "real_servers",
        "IPVS real servers",
        Place::At("/cold/kernel/realServers"),
    ),
    PLAIN_PACKET,
    SERVICE_PACKET,
    Figure::micros(
        "first_packet_node_plain",
        "first packet from the node, no Service: added latency",
        Place::FirstPacket("from the node, no Service"),
    ),
    Figure::micros(
        "first_packet_node_service",
        "first packet from the node, to a Service: added latency",
        Place::FirstPacket("from the node, last Service"),
    ),
    Figure::count(
        "cold_api_received",
        "cold start, bytes from the API server",
        Place::At("/cold/work/apiBytesReceived"),
    ),
    Figure::count(
        "cold_api_sent",
        "cold start, bytes to the API server",
        Place::At("/cold/work/apiBytesSent"),
    ),
    Figure::count(
        "cold_api_requests",
        "cold start, requests to the API server (own metric)",
        Place::At("/cold/work/apiRequests"),
    ),
    BURST_API,
    Figure::count(
        "idle_api_received",
        "idle minute, bytes from the API server",
        Place::PerMinute("/idle/work/apiBytesReceived"),
    ),
    Figure::count(
        "idle_api_requests",
        "idle minute, requests to the API server (own metric)",
        Place::PerMinute("/idle/work/apiRequests"),
    ),
    Figure::seconds(
        "restore_alone",
        "iptables-restore of all its rules alone",
        Place::Maximum(&["/restore/fullSeconds/0"]),
    ),
];

impl Figure {
    /// Name and unit.
    pub(super) fn title(&self) -> String {
        let comma = if self.unit.is_empty() { "" } else { ", " };
        format!("{}{comma}{}", self.what, self.unit)
    }

    /// Whether it is a waiting time, which the limit of a case may cut off.
    fn is_waited(&self) -> bool {
        matches!(
            self.id,
            "cold_start"
                | "cold_last_answers"
                | "endpoint_change"
                | "new_service"
                | "removed_service"
                | "burst_effect"
        )
    }
}

/// A cell of the table.
pub(super) fn cell(sample: &Sample, limit: Option<f64>) -> String {
    match limit {
        Some(limit) if sample.is_empty() => format!("> {limit} s"),
        _ => sample.to_string(),
    }
}

pub(super) fn ratio(ours: &Sample, theirs: &Sample) -> String {
    let ratio = ours.median() / theirs.median();
    if ratio.is_finite() && ratio > 0.0 {
        short(ratio)
    } else {
        "-".to_owned()
    }
}

/// What a mode of ours is compared with.
fn others(mode: Mode) -> Vec<(Mode, &'static str)> {
    let mut others = vec![(mode, "kube-proxy")];
    if mode == IPTABLES_NFT {
        others.push((NFTABLES, "kube-proxy's nftables mode"));
    }
    others
}

pub(super) fn write(text: &mut String, results: &Results) -> std::fmt::Result {
    let modes: Vec<(Mode, &str)> = MODES
        .into_iter()
        .filter(|(mode, _)| {
            let measured = |cluster| results.cases(*mode, OURS, cluster).next().is_some();
            results.clusters().into_iter().any(measured)
        })
        .collect();
    write!(text, "| what | Services x endpoints |")?;
    for (mode, name) in &modes {
        write!(text, " {name}: ours |")?;
        for (_, other) in others(*mode) {
            write!(text, " {other} | ratio |")?;
        }
    }
    write!(text, "\n|---|---|")?;
    for (mode, _) in &modes {
        write!(text, "---|")?;
        for _ in others(*mode) {
            write!(text, "---|---|")?;
        }
    }
    writeln!(text)?;
    for figure in FIGURES {
        for cluster in results.clusters() {
            let mut cells = String::new();
            let mut is_empty = true;
            for (mode, _) in &modes {
                let of = |mode, who| {
                    let sample = results.sample(mode, who, cluster, |of| figure.numbers(of));
                    let limit = results.limit(mode, who, cluster);
                    (sample, limit.filter(|_| figure.is_waited()))
                };
                let (ours, limit) = of(*mode, OURS);
                let theirs = others(*mode).into_iter();
                let theirs: Vec<(Sample, Option<f64>)> =
                    theirs.map(|(mode, _)| of(mode, THEIRS)).collect();
                // A limit applies only to figures of this mode.
                let is_of_mode = !ours.is_empty() || theirs.iter().any(|(of, _)| !of.is_empty());
                is_empty &= !is_of_mode;
                write!(cells, " {} |", cell(&ours, limit.filter(|_| is_of_mode)))?;
                for (theirs, limit) in &theirs {
                    let (shown, ratio) = (
                        cell(theirs, limit.filter(|_| is_of_mode)),
                        ratio(&ours, theirs),
                    );
                    write!(cells, " {shown} | {ratio} |")?;
                }
            }
            if !is_empty {
                writeln!(text, "| {} | {cluster} |{cells}", figure.title())?;
            }
        }
    }
    Ok(())
}

/// System calls and netlink traffic.
pub(super) fn write_counts(text: &mut String, results: &Results) -> std::fmt::Result {
    const COUNTS: [(&str, &str); 6] = [
        ("calls", "system calls"),
        ("programs", "programs started"),
        ("netlinkSends", "netlink: sends"),
        ("netlinkBytesSent", "netlink: bytes sent"),
        ("netlinkReceives", "netlink: receives"),
        ("netlinkBytesReceived", "netlink: bytes received"),
    ];
    const SECTIONS: [(&str, &str, Option<f64>); 4] = [
        ("coldCalls", "cold start", None),
        ("endpointCalls", "10 endpoints changed", None),
        ("serviceCalls", "2 Services created and deleted", None),
        ("idleCalls", "idle, per minute", Some(60.0)),
    ];
    writeln!(
        text,
        "| part | what | IPVS: ours | kube-proxy | iptables: ours | kube-proxy |\n|---|---|---|---|---|---|"
    )?;
    for (section, name, per) in SECTIONS {
        for (field, what) in COUNTS {
            write!(text, "| {name} | {what} |")?;
            for (mode, _) in MODES.into_iter().take(2) {
                for who in [OURS, THEIRS] {
                    let counts = results.trace(mode, who).and_then(|of| of.get(section));
                    let number = |field| counts?.get(field)?.as_f64();
                    let scale = per
                        .zip(number("seconds"))
                        .map_or(1.0, |(per, took)| per / took);
                    let number = number(field).map_or(f64::NAN, |number| (number * scale).round());
                    // The case was stopped during its cold start.
                    let trace = results.trace(mode, who);
                    let is_part = trace.is_some_and(|of| {
                        section == "coldCalls"
                            && of.get("ended").is_some()
                            && of.get("endpointCalls").is_none()
                    });
                    let more = if is_part { "> " } else { "" };
                    write!(text, " {more}{} |", short(number))?;
                }
            }
            writeln!(text)?;
        }
    }
    Ok(())
}

pub(super) fn csv(results: &Results) -> Result<String, std::fmt::Error> {
    let mut text = String::from(
        "mode,backend,who,services,endpoints,controller,figure,unit,median,min,max,n\n",
    );
    for cluster in results.clusters() {
        for (mode, _) in MODES {
            for who in [OURS, THEIRS] {
                for figure in FIGURES {
                    let sample = results.sample(mode, who, cluster, |of| figure.numbers(of));
                    if sample.is_empty() {
                        continue;
                    }
                    writeln!(
                        text,
                        "{},{},{who},{},{},{},{},{},{:.3},{:.3},{:.3},{}",
                        mode.0,
                        mode.1,
                        cluster.services,
                        cluster.endpoints,
                        cluster.has_controller,
                        figure.id,
                        figure.unit,
                        sample.median(),
                        sample.min(),
                        sample.max(),
                        sample.count()
                    )?;
                }
            }
        }
    }
    Ok(text)
}
