// SPDX-License-Identifier: Apache-2.0
//! The status as text: one screen, trouble in red.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use jiff::Timestamp;

use super::{Family, FinishedRound, Status};
use crate::app::screen::{Colour, Paint, Table, size};

/// A status to print.
#[derive(Debug)]
pub(in crate::app) struct Screen<'a> {
    pub(super) status: &'a Status,
    pub(super) paint: Paint,
    /// Columns of the terminal.
    pub(super) width: Option<usize>,
}

/// Columns of the table of families.
const HEAD: [&str; 9] = [
    "FAMILY", "HEALTH", "SYNCED", "LAST", "MEDIAN", "SLOWEST", "PENDING", "UNBOUND", "REFUSED",
];
/// Columns that narrow terminals go without, the first ones first.
const LEAST_WANTED: [usize; 5] = [5, 4, 8, 7, 2];
/// Width of the names of facts.
const NAME: usize = 16;

impl Display for Screen<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let status = self.status;
        writeln!(
            f,
            "kube-proxy-rs {} for kube-proxy {}, mode {}, node {}",
            status.version, status.kubernetes_version, status.mode, status.node
        )?;
        let up = age(&status.started, &status.time);
        self.fact(
            f,
            "process",
            true,
            format_args!("pid {}, up {up}", status.pid),
        )?;
        let health = if status.healthy {
            "keeps up"
        } else {
            "a change has been waiting for more than twice the sync period"
        };
        self.fact(f, "health", status.healthy, health)?;
        let eligible = if status.node_eligible {
            "may send connections to this node"
        } else {
            "are sent away: the Node is missing, being deleted or marked, or the proxy stops"
        };
        self.fact(f, "load balancers", status.node_eligible, eligible)?;
        if let Some((backend, reason)) = &status.iptables {
            self.fact(f, "iptables", true, format_args!("{backend} ({reason})"))?;
        }
        if let Some((rules, reason)) = &status.ipvs_rules {
            self.fact(f, "rules", true, format_args!("{rules} ({reason})"))?;
        }
        self.fact(
            f,
            "services",
            status.service_errors == 0,
            format_args!(
                "{} in {} EndpointSlices; {} with errors, {} changed since the last sync",
                status.services,
                status.endpoint_slices,
                status.service_errors,
                status.changed_services
            ),
        )?;
        if status.draining_servers > 0 {
            self.fact(
                f,
                "draining",
                true,
                format_args!("{} real servers", status.draining_servers),
            )?;
        }
        if status.skipped_objects > 0 {
            let skipped = format_args!(
                "{} since the start; the log names them",
                status.skipped_objects
            );
            self.fact(f, "invalid objects", false, skipped)?;
        }
        for (kind, (found, repaired)) in &status.drift {
            let text = format_args!("{kind}: {found} changed by others, {repaired} repaired");
            self.fact(f, "drift", found == repaired, text)?;
        }
        for (name, missing) in [
            ("kernel lacks", &status.missing_capabilities),
            ("cannot write", &status.unwritable_settings),
        ] {
            if !missing.is_empty() {
                self.fact(f, name, false, missing.join(", "))?;
            }
        }
        let daemons = &status.sync_daemons;
        if !daemons.is_empty() {
            let in_words = daemons.iter().map(|(role, runs)| {
                let verb = if *runs { "runs" } else { "does not run" };
                format!("{role} {verb}")
            });
            let text = in_words.collect::<Vec<_>>().join(", ");
            let all_run = daemons.values().all(|runs| *runs);
            self.fact(f, "sync daemons", all_run, text)?;
        }
        if status.is_busy {
            self.fact(
                f,
                "sync loop",
                false,
                "busy; pending changes and errors are not known",
            )?;
        }
        self.families(f)?;
        if !status.problems.is_empty() {
            writeln!(f, "\nproblems")?;
        }
        for problem in &status.problems {
            writeln!(
                f,
                "  {} {}: {}",
                problem.service, problem.family, problem.message
            )?;
        }
        Ok(())
    }
}

impl<'a> Screen<'a> {
    /// As stdout wants it.
    pub(in crate::app) fn for_stdout(status: &'a Status) -> Self {
        Self {
            status,
            paint: Paint::for_stdout(),
            width: size().map(|(width, _)| width),
        }
    }

    fn fact(
        &self,
        f: &mut Formatter<'_>,
        name: &str,
        good: bool,
        text: impl Display,
    ) -> fmt::Result {
        if good {
            writeln!(f, "  {name:NAME$}{text}")
        } else {
            writeln!(f, "  {name:NAME$}{}", self.paint.with(Colour::Bad, text))
        }
    }

    fn families(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(HEAD, HEAD.len());
        for (name, family) in &self.status.families {
            table.add(row(name, family, &self.status.time));
        }
        let lines = table.lines(self.width, &LEAST_WANTED);
        writeln!(f)?;
        for (number, line) in lines.iter().enumerate() {
            let line = match number {
                0 => self.paint.with(Colour::Dim, line),
                _ => line
                    .replacen(
                        " ok ",
                        &format!(" {} ", self.paint.with(Colour::Good, "ok")),
                        1,
                    )
                    .replacen(LATE, &self.paint.with(Colour::Bad, LATE), 1),
            };
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

/// A family that does not keep up.
const LATE: &str = "late";

fn row(name: &str, family: &Family, now: &str) -> [String; 9] {
    let mut seconds: Vec<f64> = family.rounds.iter().map(|round| round.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let shown = |seconds: Option<&f64>| seconds.map_or_else(|| "-".to_owned(), |s| latency(*s));
    let last = family.rounds.last();
    let last = last.map_or_else(|| "-".to_owned(), describe);
    let pending = match (family.is_pending, family.is_unknown) {
        (_, true) => "all, kernel is read anew",
        (true, false) => "yes",
        (false, false) => "no",
    };
    [
        name.to_owned(),
        if family.healthy { "ok" } else { LATE }.to_owned(),
        format!("{} ago", age(&family.last_success, now)),
        last,
        shown(seconds.get(seconds.len() / 2)),
        shown(seconds.last()),
        pending.to_owned(),
        family.unbound_addresses.to_string(),
        family.refused_service_ports.to_string(),
    ]
}

fn describe(round: &FinishedRound) -> String {
    let outcome = if round.succeeded { "" } else { " failed" };
    let scope = if round.is_full { "full" } else { "partial" };
    format!("{} {scope}{outcome}", latency(round.seconds))
}

/// Milliseconds below a second.
pub(in crate::app) fn latency(seconds: f64) -> String {
    if seconds < 1.0 {
        format!("{:.1} ms", seconds * 1000.0)
    } else {
        format!("{seconds:.2} s")
    }
}

/// The time between two times, in its two largest units, as `kubectl` prints ages.
pub(in crate::app) fn age(since: &str, now: &str) -> String {
    let times = (since.parse::<Timestamp>(), now.parse::<Timestamp>());
    let (Ok(since), Ok(now)) = times else {
        return "unknown".to_owned();
    };
    let age = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    let seconds = age.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) => format!("{days}d{hours}h"),
    }
}
