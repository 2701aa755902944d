// SPDX-License-Identifier: Apache-2.0
//! A process seen from outside: memory, CPU time and `/metrics`.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

/// Where both proxies serve metrics.
const METRICS: ([u8; 4], u16) = ([127, 0, 0, 1], 10_249);

/// `VmRSS`, `VmHWM` and `RssAnon` in kB, and the number of threads.
pub fn memory(pid: u32) -> anyhow::Result<Value> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let number = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Ok(json!({
        "rssKb": number("VmRSS:"),
        "peakKb": number("VmHWM:"),
        // The part of it that is not file-backed (the program itself), and so not shared.
        "anonymousKb": number("RssAnon:"),
        "threads": number("Threads:"),
    }))
}

/// CPU time in seconds: from the scheduler's nanoseconds where the kernel has them, else from
/// ticks.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let mut nanoseconds = 0_u64;
    let mut is_counted = false;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        if let Some(time) = text
            .split_whitespace()
            .next()
            .and_then(|t| t.parse::<u64>().ok())
        {
            nanoseconds += time;
            is_counted = true;
        }
    }
    if is_counted && nanoseconds > 0 {
        return Ok(Duration::from_nanos(nanoseconds).as_secs_f64());
    }
    times(pid, 2)
}

/// The part of the CPU time that the process did not spend in the kernel, in seconds.
pub fn user_seconds(pid: u32) -> anyhow::Result<f64> {
    times(pid, 1)
}

/// CPU time in seconds, including children that the process has waited for.
pub fn cpu_with_children(pid: u32) -> anyhow::Result<f64> {
    Ok(cpu_seconds(pid)? + times(pid, 4)? - times(pid, 2)?)
}

/// Sum in seconds of the first `count` of: own user and system time, the children's user and system
/// time. The kernel counts hundredths of a second (`USER_HZ`).
fn times(pid: u32, count: usize) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may contain blanks; it ends at the last parenthesis, and field 3 follows.
    let (_, fields) = stat.rsplit_once(')').context("stat has no name")?;
    let fields = fields.split_whitespace().skip(11).take(count);
    let ticks: u32 = fields.map(str::parse::<u32>).sum::<Result<_, _>>()?;
    Ok(f64::from(ticks) / 100.0)
}

/// Bytes that a link of this thread's network namespace has received and sent.
pub fn link_bytes(name: &str) -> anyhow::Result<(f64, f64)> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let found = lines.find(|(link, _)| link.trim_start() == name);
    let fields = found.map(|(_, fields)| fields);
    let fields = fields.with_context(|| format!("there is no link {name}"))?;
    let number = |nth| -> anyhow::Result<f64> {
        let field = fields.split_whitespace().nth(nth);
        Ok(field.context("a line of net/dev is too short")?.parse()?)
    };
    Ok((number(0)?, number(8)?))
}

/// Processes and threads created since the kernel booted.
pub fn forks() -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat
        .lines()
        .find_map(|line| line.strip_prefix("processes "));
    Ok(line
        .context("/proc/stat has no process count")?
        .trim()
        .parse()?)
}

/// The values of `/metrics`, by series.
#[derive(Clone, Debug, Default)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// `None` while they are not served.
    pub fn read() -> Option<Self> {
        let address = SocketAddr::from(METRICS);
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .ok()?;
        // HTTP/1.1 would allow a chunked answer.
        let request = "GET /metrics HTTP/1.0\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n";
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let text = String::from_utf8_lossy(&answer);
        let values = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (series, value) = line.rsplit_once(' ')?;
                Some((series.to_owned(), value.parse().ok()?))
            });
        Some(Self(values.collect()))
    }

    /// All series of a metric.
    pub fn series<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.0
            .iter()
            .filter(move |(series, _)| series.split('{').next() == Some(name))
            .map(|(series, value)| (series.as_str(), *value))
    }

    /// Sum over all series of a metric whose labels contain `label`; `None` if there are none.
    pub fn sum(&self, name: &str, label: &str) -> Option<f64> {
        self.series(name)
            .filter(|(series, _)| series.contains(label))
            .map(|(_, value)| value)
            .reduce(|a, b| a + b)
    }

    /// Work since the proxy started: rounds, netlink traffic, child processes.
    pub fn work(&self) -> BTreeMap<&'static str, f64> {
        let metrics = [
            (
                "rounds",
                "kubeproxy_sync_proxy_rules_duration_seconds_count",
                "",
            ),
            (
                "roundSeconds",
                "kubeproxy_sync_proxy_rules_duration_seconds_sum",
                "",
            ),
            ("roundTrips", "kube_proxy_rs_netlink_round_trips_total", ""),
            (
                "messagesSent",
                "kube_proxy_rs_netlink_messages_total",
                "\"sent\"",
            ),
            (
                "messagesReceived",
                "kube_proxy_rs_netlink_messages_total",
                "\"received\"",
            ),
            ("bytesSent", "kube_proxy_rs_netlink_bytes_total", "\"sent\""),
            (
                "bytesReceived",
                "kube_proxy_rs_netlink_bytes_total",
                "\"received\"",
            ),
            ("processes", "kube_proxy_rs_processes_started_total", ""),
            ("steps", "kube_proxy_rs_plan_steps_total", ""),
            ("apiRequests", "rest_client_requests_total", ""),
        ];
        metrics
            .into_iter()
            .filter_map(|(key, name, label)| Some((key, self.sum(name, label)?)))
            .collect()
    }
}

/// Work between two readings.
pub fn difference(
    before: &BTreeMap<&'static str, f64>,
    after: &BTreeMap<&'static str, f64>,
) -> Value {
    after
        .iter()
        .map(|(key, value)| {
            let change = value - before.get(key).copied().unwrap_or_default();
            ((*key).to_owned(), json!(change))
        })
        .collect::<serde_json::Map<_, _>>()
        .into()
}
