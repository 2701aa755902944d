// SPDX-License-Identifier: Apache-2.0
//! The tables of a profile, as Markdown.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use serde_json::Value;

use super::stacks::Stacks;
use super::{Mode, PHASES};

/// Places listed for each phase.
const PLACES: usize = 6;

pub(super) fn write(modes: &[Mode], frequency: u32) -> Result<String, fmt::Error> {
    let mut text = String::new();
    for mode in modes {
        let name = mode.name;
        let number = |key: &str| {
            mode.case
                .get(key)
                .and_then(Value::as_u64)
                .unwrap_or_default()
        };
        let title = format!("{name}, {} x {}", number("services"), number("endpoints"));
        writeln!(text, "### {title}\n")?;
        for (stacks, (_, phase)) in mode.cpu.iter().zip(PHASES) {
            let file = format!("profile-{name}-{}.svg", phase.replace(' ', "-"));
            writeln!(text, "[Flame graph: {phase}](benchmarks/{file})  ")?;
            if stacks.total() == 0 {
                return Err(fmt::Error);
            }
        }
        if mode.heap.is_some() {
            writeln!(
                text,
                "[Memory at its peak](benchmarks/profile-{name}-heap.svg)"
            )?;
        }
        threads(&mut text, mode, frequency)?;
        places(&mut text, mode)?;
        calls(&mut text, mode)?;
    }
    Ok(text)
}

/// CPU time by thread.
fn threads(text: &mut String, mode: &Mode, frequency: u32) -> fmt::Result {
    writeln!(text, "\n| CPU | {} |\n|---|---|---|", heads().join(" | "))?;
    let names: BTreeSet<&str> = mode
        .cpu
        .iter()
        .flat_map(|stacks| stacks.by_thread().into_keys())
        .collect();
    let row = |name: &str, cell: &dyn Fn(&Stacks) -> String| {
        let cells: Vec<_> = mode.cpu.iter().map(cell).collect();
        format!("| {name} | {} |", cells.join(" | "))
    };
    for name in names {
        let cell = |stacks: &Stacks| {
            let (all, kernel) = stacks.by_thread().get(name).copied().unwrap_or_default();
            let total = stacks.total();
            match (percent(all, total), percent(kernel, total)) {
                (all, _) if kernel == 0 => all,
                (all, kernel) => format!("{all} (kernel {kernel})"),
            }
        };
        let title = match name {
            "main" | "sync" | "links" => format!("thread `{name}`"),
            _ => format!("`{name}`"),
        };
        writeln!(text, "{}", row(&title, &cell))?;
    }
    let seconds = |stacks: &Stacks| {
        let samples = u32::try_from(stacks.total()).unwrap_or(u32::MAX);
        format!("{:.2} s", f64::from(samples) / f64::from(frequency))
    };
    writeln!(text, "{}", row("all", &seconds))
}

/// CPU time and memory by place in our program.
fn places(text: &mut String, mode: &Mode) -> fmt::Result {
    let tops = mode.cpu.iter().zip(heads());
    for (stacks, head) in tops {
        writeln!(text, "\n| {head}: our program | of all CPU |\n|---|---|")?;
        for (place, weight) in stacks.top(PLACES) {
            writeln!(text, "| {place} | {} |", percent(weight, stacks.total()))?;
        }
    }
    if let Some(heap) = &mode.heap {
        writeln!(text, "\n| memory at its peak | MB |\n|---|---|")?;
        writeln!(text, "| all | {} |", megabytes(heap.total()))?;
        for (place, bytes) in heap.top(PLACES) {
            writeln!(text, "| {place} | {} |", megabytes(bytes))?;
        }
    }
    Ok(())
}

/// System calls.
fn calls(text: &mut String, mode: &Mode) -> fmt::Result {
    writeln!(
        text,
        "\n| under strace | system calls | programs started | netlink sent | netlink received | most frequent |\n\
         |---|---|---|---|---|---|"
    )?;
    for (key, phase) in PHASES {
        let counts = mode.trace.get(format!("{key}Calls"));
        let value = |name: &str| counts.and_then(|counts| counts.get(name));
        let number = |name: &str| value(name).and_then(Value::as_u64).unwrap_or_default();
        let netlink = |calls: &str, bytes: &str| {
            format!(
                "{} calls, {} kB",
                number(calls),
                number(bytes).div_ceil(1_000)
            )
        };
        writeln!(
            text,
            "| {phase} | {} | {} | {} | {} | {} |",
            number("calls"),
            number("programs"),
            netlink("netlinkSends", "netlinkBytesSent"),
            netlink("netlinkReceives", "netlinkBytesReceived"),
            frequent(value("top")),
        )?;
    }
    writeln!(text)
}

fn frequent(top: Option<&Value>) -> String {
    let top = top.and_then(Value::as_object).into_iter().flatten();
    let mut top: Vec<_> = top
        .filter_map(|(name, count)| Some((count.as_u64()?, name)))
        .collect();
    top.sort_by(|a, b| b.cmp(a));
    let named: Vec<_> = top
        .into_iter()
        .take(5)
        .map(|(count, name)| format!("`{name}` {count}"))
        .collect();
    named.join(", ")
}

fn heads() -> [&'static str; PHASES.len()] {
    PHASES.map(|(_, phase)| phase)
}

fn percent(part: u64, of: u64) -> String {
    format!(
        "{} %",
        (100 * part + of / 2).checked_div(of).unwrap_or_default()
    )
}

fn megabytes(bytes: u64) -> String {
    let tenths = bytes.div_ceil(100_000);
    format!("{}.{}", tenths / 10, tenths % 10)
}
