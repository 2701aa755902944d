// SPDX-License-Identifier: Apache-2.0
//! The API server falls silent while its kernel, or a balancer, answers for it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::Test;
use crate::ours;
use kpr_testkit::balancer::Balancer;
use kpr_testkit::machine::Machine;
use kpr_testkit::proxy::{Proxy, series};
use kpr_testkit::testbed::{Objects, Testbed};
use kpr_testkit::wait;

pub(crate) const TESTS: &[Test] = &[
    (
        "a_frozen_api_server_is_noticed",
        a_frozen_api_server_is_noticed,
    ),
    (
        "a_black_holed_backend_does_not_freeze_the_rules",
        a_black_holed_backend_does_not_freeze_the_rules,
    ),
];

const WEB: &str = "apiVersion: v1
kind: Service
metadata: {name: kpr-silence, namespace: default}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kpr-silence-1, namespace: default, labels: {kubernetes.io/service-name: kpr-silence}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.1.1]}
";

/// The slice with another endpoint.
fn scaled(address: &str) -> String {
    let (_, slice) = WEB.split_once("---\n").unwrap_or_default();
    slice.replace("10.244.1.1", address)
}

/// Kinds that are watched.
const KINDS: usize = 4;

/// What a kubelet may see fail in a row before it restarts us, as in `deploy`.
const PROBE: Duration = Duration::from_secs(10);

/// While the server is away each kind may be asked for so often in a minute.
const REQUESTS: f64 = 6.0;

const HEARD: &str = "kube_proxy_rs_watch_last_heard_timestamp_seconds";

/// Requests that were made so far.
fn requests(machine: &Machine<'_>) -> Result<f64> {
    let all = series(&machine.namespace, "rest_client_requests_total")?;
    let events = |series: &&String| series.contains("POST") || series.contains("PATCH");
    Ok(all
        .iter()
        .filter(|(series, _)| !events(series))
        .map(|(_, count)| count)
        .sum())
}

/// How long the server has said nothing of the kind that it spoke of last.
fn silence(machine: &Machine<'_>) -> Result<f64> {
    let heard = series(&machine.namespace, HEARD)?;
    ensure!(heard.len() >= KINDS - 1, "{heard:?}");
    let last = heard.values().copied().fold(0.0, f64::max);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(now.as_secs_f64() - last)
}

fn start<'a>(
    testbed: &'a Testbed,
    name: &'static str,
    server: &str,
) -> Result<(Machine<'a>, Proxy)> {
    let machine = Machine::new(testbed, name, 0)?;
    machine.register("{}");
    let proxy = machine.spawn(machine.with_flags(&ours(), &[&format!("--master={server}")]))?;
    machine.health_becomes(&proxy, 200)?;
    machine.rules_become(&proxy, "the endpoint has its rule", |rules| {
        rules.contains("10.244.1.1:8080")
    })?;
    Ok((machine, proxy))
}

fn a_frozen_api_server_is_noticed(testbed: &Testbed) -> Result<()> {
    let _objects = Objects::new(testbed, WEB);
    let server = testbed.env("API_SERVER").to_owned();
    let (machine, mut proxy) = start(testbed, "kpr-frozen", &server)?;
    let (before, since) = (requests(&machine)?, wait::now());
    let frozen = testbed.freeze_apiserver()?;
    // Each probe of a kubelet is answered: a restart would help nobody.
    let mut probed = wait::now();
    let noticed = wait::until("the proxy says that nothing comes", || {
        if probed.elapsed() >= PROBE {
            probed = wait::now();
            for path in ["/livez", "/healthz"] {
                let (code, body) = machine.get(10256, path)?;
                if code != 200 {
                    return Ok(Err(format!("{path} says {code}: {body}")));
                }
            }
        }
        let log = proxy.log();
        let failed = log.lines().filter(|line| line.contains("watch failed"));
        let kinds = ["Service", "EndpointSlice", "Node"];
        let all: Vec<&str> = failed.collect();
        for kind in kinds {
            let is_it = |line: &&str| line.contains(&format!("kind=\"{kind}\""));
            ensure!(all.iter().any(is_it), "{kind} in {log}");
        }
        Ok(Ok(since.elapsed()))
    })?;
    let noticed = noticed.map_err(anyhow::Error::msg)?;
    wait::until("the metric tells", || {
        let silence = silence(&machine)?;
        ensure!(silence > 60.0, "{silence} s");
        Ok(())
    })?;
    let minutes = since.elapsed().as_secs_f64() / 60.0;
    let per_minute = (requests(&machine)? - before) / minutes;
    eprintln!(
        "frozen API server: noticed after {noticed:?}, {per_minute:.1} requests per minute in {minutes:.1} minutes"
    );
    ensure!(
        per_minute <= REQUESTS * f64::from(u8::try_from(KINDS)?),
        "{per_minute} requests per minute"
    );
    ensure!(proxy.is_running()?, "{}", proxy.log());

    drop(frozen);
    let since = wait::now();
    testbed.apply(&scaled("10.244.1.2"));
    machine.rules_become(&proxy, "the change arrives", |rules| {
        rules.contains("10.244.1.2:8080") && !rules.contains("10.244.1.1:8080")
    })?;
    eprintln!("a change arrived {:?} after it went on", since.elapsed());
    machine.health_becomes(&proxy, 200)?;
    Ok(())
}

fn a_black_holed_backend_does_not_freeze_the_rules(testbed: &Testbed) -> Result<()> {
    let _objects = Objects::new(testbed, WEB);
    let behind: SocketAddr = testbed.api_server().parse()?;
    let front = SocketAddr::new(behind.ip(), 0);
    let balancer = Balancer::start(front, &[behind, behind])?;
    let server = format!("https://{}", balancer.address());
    let (machine, proxy) = start(testbed, "kpr-hole", &server)?;
    ensure!(balancer.connections(0) > 0 && balancer.connections(1) == 0);
    let before = requests(&machine)?;
    balancer.silence(0);
    testbed.apply(&scaled("10.244.1.2"));
    let since = wait::now();
    // The limit of a condition is what is promised: three minutes.
    machine
        .rules_become(&proxy, "the change arrives by the other server", |rules| {
            rules.contains("10.244.1.2:8080") && !rules.contains("10.244.1.1:8080")
        })
        .context("behind a balancer")?;
    let minutes = since.elapsed().as_secs_f64() / 60.0;
    let made = requests(&machine)? - before;
    eprintln!(
        "black-holed balancer: the change arrived after {:?}, {made} requests in {minutes:.1} minutes, {} new connections",
        since.elapsed(),
        balancer.connections(1)
    );
    ensure!(
        made <= REQUESTS * f64::from(u8::try_from(KINDS)?) * minutes.max(1.0),
        "{made} requests in {minutes} minutes"
    );
    machine.health_becomes(&proxy, 200)?;
    Ok(())
}
