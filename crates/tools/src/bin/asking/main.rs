// SPDX-License-Identifier: Apache-2.0
//! What it costs the sync loop to be asked: the latency of changes while `top` runs and several
//! browsers have the page open, compared with that while nobody asks. Turns of either kind
//! alternate, so that other load of the machine meets both. `hack/asking` runs it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Parser;
use k8s_openapi::jiff::Timestamp;
use kpr_tools::pause;
use kpr_tools::process::{self, Metrics};
use kpr_tools::running::{Running, programmed};
use kube_proxy_rs::clock::Clock;
use serde_json::{Value, json};

/// Run it in a fresh network namespace or guest kernel.
#[derive(Debug, Parser)]
struct Options {
    /// The proxy's executable.
    #[arg(long)]
    proxy: PathBuf,
    /// The proxy's mode.
    #[arg(long)]
    mode: String,
    #[arg(long, default_value_t = 5_000)]
    services: u32,
    /// Endpoints of each Service.
    #[arg(long, default_value_t = 10)]
    endpoints: u32,
    /// Turns of each kind.
    #[arg(long, default_value_t = 4)]
    turns: u32,
    /// Changes of each turn.
    #[arg(long, default_value_t = 40)]
    changes: u32,
    /// Browsers with the page open.
    #[arg(long, default_value_t = 5)]
    browsers: u32,
    /// Logs.
    #[arg(long)]
    out: PathBuf,
}

/// How often the page refreshes itself.
const REFRESH: Duration = Duration::from_secs(5);
/// Longer than any cold start in a guest kernel.
const LIMIT: Duration = Duration::from_mins(20);
/// Seconds from the change of an endpoint, as its slice says, to the kernel.
const LATENCY: &str = "kubeproxy_network_programming_duration_seconds";

#[expect(clippy::print_stdout, reason = "printing is its purpose")]
fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    println!("{}", measure(&options)?);
    Ok(())
}

fn measure(options: &Options) -> anyhow::Result<String> {
    let clock = Clock::system();
    let manifests = tempfile::tempdir()?;
    std::fs::write(manifests.path().join("all.json"), cluster(options))?;
    let log = File::create(options.out.join(format!("{}.log", options.mode)))?;
    let mut proxy = start(options, manifests.path(), &log)?;
    let begin = clock.monotonic();
    loop {
        if Metrics::read().as_ref().and_then(programmed).is_some() {
            break;
        }
        proxy.ensure_runs()?;
        let elapsed = clock.monotonic().saturating_sub(begin);
        ensure!(elapsed < LIMIT, "the proxy does not sync");
        pause(Duration::from_millis(500));
    }
    // The page once, for its size and the time that it takes.
    let mut page = Vec::new();
    for _ in 0..5 {
        page.push(fetch(&clock)?);
    }
    let (mut quiet, mut asked) = (Vec::new(), Vec::new());
    for turn in 0..options.turns {
        quiet.push(one_turn(
            &clock,
            options,
            manifests.path(),
            proxy.pid(),
            turn,
        )?);
        let asking = Asking::begin(options)?;
        asked.push(one_turn(
            &clock,
            options,
            manifests.path(),
            proxy.pid(),
            turn,
        )?);
        page.extend(asking.end());
    }
    report(options, &quiet, &asked, &page)
}

/// Mean latency of the changes in seconds, and the proxy's processor time for each second.
#[derive(Clone, Copy, Debug)]
struct Turn {
    latency: f64,
    load: f64,
}

fn one_turn(
    clock: &Clock,
    options: &Options,
    manifests: &Path,
    pid: u32,
    turn: u32,
) -> anyhow::Result<Turn> {
    let before = latencies()?;
    let (begin, cpu) = (clock.monotonic(), process::cpu_with_children(pid)?);
    for change in 0..options.changes {
        let endpoints = 1 + (turn + change) % 2;
        let text = slice(0, endpoints, Some(Timestamp::now())).to_string();
        // In one step, as editors and ConfigMap volumes do it.
        let part = manifests.join(".part");
        std::fs::write(&part, text)?;
        std::fs::rename(part, manifests.join("changing.json"))?;
        // Varies, so as not to be in step with anything periodic.
        pause(Duration::from_millis(300 + u64::from(change * 37 % 101)));
    }
    // The last one may take its time.
    let wanted = before.1 + f64::from(options.changes) * 0.9;
    let mut after = latencies()?;
    let last = clock.monotonic();
    while after.1 < wanted {
        let elapsed = clock.monotonic().saturating_sub(last);
        ensure!(
            elapsed < Duration::from_mins(1),
            "changes are not programmed"
        );
        pause(Duration::from_millis(200));
        after = latencies()?;
    }
    let seconds = clock.monotonic().saturating_sub(begin).as_secs_f64();
    Ok(Turn {
        latency: (after.0 - before.0) / (after.1 - before.1),
        load: (process::cpu_with_children(pid)? - cpu) / seconds,
    })
}

/// Sum and number of the latencies so far.
fn latencies() -> anyhow::Result<(f64, f64)> {
    let metrics = Metrics::read().context("no metrics")?;
    let of = |what: &str| metrics.sum(&format!("{LATENCY}_{what}"), "").unwrap_or(0.0);
    Ok((of("sum"), of("count")))
}

/// Those who ask.
struct Asking {
    is_over: Arc<AtomicBool>,
    browsers: Vec<JoinHandle<()>>,
    pages: Arc<Mutex<Vec<Page>>>,
    /// `top`, where the mode has it.
    _top: Option<Running>,
}

impl Asking {
    fn begin(options: &Options) -> anyhow::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let pages = Arc::new(Mutex::new(Vec::new()));
        let browser = |index: u32| {
            let (is_over, pages) = (is_over.clone(), pages.clone());
            let offset = REFRESH * index / options.browsers.max(1);
            std::thread::spawn(move || browse(&is_over, &pages, offset))
        };
        let browsers = (0..options.browsers).map(browser).collect();
        let command = [options.proxy.display().to_string(), "top".to_owned()];
        let nowhere = File::options().write(true).open("/dev/null")?;
        let top = (options.mode == "ipvs").then(|| Running::start(&command, &[], &nowhere));
        Ok(Self {
            is_over,
            browsers,
            pages,
            _top: top.transpose()?,
        })
    }

    fn end(self) -> Vec<Page> {
        self.is_over.store(true, Ordering::Relaxed);
        for browser in self.browsers {
            // One that failed has no pages to show.
            drop(browser.join());
        }
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut pages)
    }
}

fn browse(is_over: &AtomicBool, pages: &Mutex<Vec<Page>>, offset: Duration) {
    let clock = Clock::system();
    let mut next = clock.monotonic() + offset;
    while !is_over.load(Ordering::Relaxed) {
        if clock.monotonic() >= next {
            next += REFRESH;
            if let Ok(page) = fetch(&clock) {
                let mut pages = pages.lock().unwrap_or_else(PoisonError::into_inner);
                pages.push(page);
            }
        }
        pause(Duration::from_millis(50));
    }
}

/// A page that was read to its end.
#[derive(Clone, Copy, Debug)]
struct Page {
    bytes: usize,
    seconds: f64,
}

fn fetch(clock: &Clock) -> anyhow::Result<Page> {
    let begin = clock.monotonic();
    let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, 10249)))?;
    write!(stream, "GET / HTTP/1.0\r\nHost: node\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer.starts_with(b"HTTP/1.0 200"), "the page is no page");
    Ok(Page {
        bytes: answer.len(),
        seconds: clock.monotonic().saturating_sub(begin).as_secs_f64(),
    })
}

fn start(options: &Options, manifests: &Path, log: &File) -> anyhow::Result<Running> {
    let command = [
        options.proxy.display().to_string(),
        format!("--proxy-mode={}", options.mode),
        format!("--manifests={}", manifests.display()),
        "--hostname-override=node".to_owned(),
        "--cluster-cidr=10.128.0.0/9".to_owned(),
        "--conntrack-max-per-core=0".to_owned(),
        "--conntrack-min=0".to_owned(),
        // What is measured is the work of a change, not the pause between two.
        format!("--{}-min-sync-period=0s", options.mode),
    ];
    Running::start(&command, &[], log)
}

/// All objects as one list. The Service that changes is the first.
fn cluster(options: &Options) -> String {
    let mut items = vec![json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node" },
        "status": { "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }] },
    })];
    for number in 0..options.services {
        items.push(service(number));
        if number > 0 {
            items.push(slice(number, options.endpoints, None));
        }
    }
    json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()
}

/// Namespaces of a hundred Services each.
fn name(number: u32) -> (String, String) {
    (
        format!("team-{:02}", number / 100),
        format!("service-{number}"),
    )
}

fn service(number: u32) -> Value {
    let (namespace, name) = name(number);
    let address = Ipv4Addr::from_bits(0x0a60_0100 + number);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": namespace },
        "spec": { "clusterIP": address, "ports": [{ "name": "http", "port": 80 }] },
    })
}

fn slice(number: u32, endpoints: u32, trigger: Option<Timestamp>) -> Value {
    let (namespace, name) = name(number);
    let address = |index: u32| Ipv4Addr::from_bits(0x0a80_0000 + number * 16 + index);
    let endpoints = (1..=endpoints).map(|index| json!({ "addresses": [address(index)] }));
    let annotations = trigger.map_or_else(
        || json!({}),
        |at| json!({ "endpoints.kubernetes.io/last-change-trigger-time": at.to_string() }),
    );
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-1"), "namespace": namespace, "annotations": annotations,
            "labels": { "kubernetes.io/service-name": name },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

fn report(
    options: &Options,
    quiet: &[Turn],
    asked: &[Turn],
    pages: &[Page],
) -> anyhow::Result<String> {
    let mean = |turns: &[Turn], of: fn(&Turn) -> f64| {
        let count = u32::try_from(turns.len()).map_or(1.0, f64::from);
        turns.iter().map(of).sum::<f64>() / count
    };
    let (before, with) = (mean(quiet, |it| it.latency), mean(asked, |it| it.latency));
    let (idle, load) = (mean(quiet, |it| it.load), mean(asked, |it| it.load));
    let mut times: Vec<f64> = pages.iter().map(|page| page.seconds).collect();
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).context("no page")?;
    let slowest = times.last().context("no page")?;
    let largest = pages.iter().map(|page| page.bytes).max();
    let each = |turns: &[Turn]| -> String {
        let latencies = turns
            .iter()
            .map(|turn| format!("{:.2}", turn.latency * 1e3));
        latencies.collect::<Vec<_>>().join(", ")
    };
    let mut text = String::new();
    writeln!(
        text,
        "{} mode, {} Services with {} endpoints, {} browsers{}; {} turns of {} changes each",
        options.mode,
        options.services,
        options.endpoints,
        options.browsers,
        if options.mode == "ipvs" {
            " and top"
        } else {
            ""
        },
        options.turns,
        options.changes
    )?;
    writeln!(
        text,
        "latency of a change, nobody asks: {:.2} ms ({})",
        before * 1e3,
        each(quiet)
    )?;
    writeln!(
        text,
        "latency of a change, asked:       {:.2} ms ({})",
        with * 1e3,
        each(asked)
    )?;
    writeln!(text, "ratio: {:.2}", with / before)?;
    writeln!(text, "proxy's CPU: {idle:.3} of a core, {load:.3} asked")?;
    write!(
        text,
        "page: {} bytes, median {:.1} ms, slowest {:.1} ms of {}",
        largest.unwrap_or_default(),
        median * 1e3,
        slowest * 1e3,
        times.len()
    )?;
    Ok(text)
}
