// SPDX-License-Identifier: Apache-2.0
//! Changes of more rules than one batch of nft should have.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::node::{Node, late};
use kpr_testkit::manifests::Service;
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::wait;

const PORTS: usize = 1_000;
const ENDPOINTS: usize = 30;

/// Beyond every budget: of these about 50,000 rules are written.
const TOO_MANY_PORTS: usize = 9_000;
const TOO_MANY_ENDPOINTS: usize = 40;
/// 5,000 ports with 9 endpoints each.
const WITHIN_BUDGET: usize = 45_000;

/// The most rules that a batch has: those that waited and those that came meanwhile.
const BATCH: usize = 10_000;

/// Ports of one `EndpointSlice`: no more are allowed.
const OF_A_SLICE: usize = 100;

/// Numbers and keeps the batches, and lets none but the first two pass before there is a file `go`
/// or the test has ended.
const GATE: &str = r#"dir=$(dirname "$0")
n=$(($(cat "$dir/n" 2>/dev/null || echo 0) + 1)); echo $n >"$dir/n"
cat >"$dir/in.$n"
while [ $n -gt 2 ] && [ -d "$dir" ] && [ ! -e "$dir/go" ]; do sleep 0.05; done
PATH=${PATH#*:} "${0##*/}" "$@" <"$dir/in.$n"
exit $?
"#;

/// Numbers and keeps the batches.
const KEEP: &str = r#"dir=$(dirname "$0")
n=$(($(cat "$dir/n" 2>/dev/null || echo 0) + 1)); echo $n >"$dir/n"
cat >"$dir/in.$n.part"
mv "$dir/in.$n.part" "$dir/in.$n"
PATH=${PATH#*:} "${0##*/}" "$@" <"$dir/in.$n"
exit $?
"#;

/// A Service of so many ports, with its slices. `net` tells its pods from others.
fn large(all: usize, endpoints: usize, net: u8) -> Value {
    let port = |port: usize| json!({ "name": format!("p{port}"), "port": port, "protocol": "TCP" });
    let ports = |range: std::ops::Range<usize>| range.map(port).collect::<Vec<_>>();
    let endpoints: Vec<Value> = (1..=endpoints)
        .map(|n| json!({ "addresses": [format!("10.1.{net}.{n}")] }))
        .collect();
    let slices = (0..all / OF_A_SLICE).map(|n| {
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("large-{n}"),
                "namespace": "tenant",
                "labels": { "kubernetes.io/service-name": "large" },
            },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": ports(1 + n * OF_A_SLICE..1 + (n + 1) * OF_A_SLICE),
        })
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "large", "namespace": "tenant" },
        "spec": {
            "clusterIP": "10.96.9.9",
            "clusterIPs": ["10.96.9.9"],
            "ports": ports(1..all + 1),
        },
    });
    let items: Vec<Value> = std::iter::once(service).chain(slices).collect();
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

/// The numbers of the batches that hold a text, and of all.
fn batches(node: &Node, text: &str) -> Result<(Vec<usize>, usize)> {
    let mut found = Vec::new();
    let mut number = 0;
    loop {
        let file = node.file(&format!("in.{}", number + 1));
        if !file.exists() {
            return Ok((found, number));
        }
        number += 1;
        if !text.is_empty() && fs::read_to_string(file)?.contains(text) {
            found.push(number);
        }
    }
}

fn is_complete(node: &Node) -> Result<()> {
    wait::until("all of it is there", || {
        let rules = node.rules(Family::V4)?;
        let count = |text: &str| rules.iter().filter(|rule| rule.contains(text)).count();
        let endpoints = count("--to-destination 10.1.9.");
        ensure!(endpoints == PORTS * ENDPOINTS, "{endpoints} endpoints");
        let ports = count("-d 10.96.9.9/32 -p tcp -m comment");
        ensure!(ports == PORTS, "{ports} ports");
        ensure!(count("default/late") > 0, "another Service is not");
        Ok(())
    })
}

/// Another Service's change does not wait for the end of a large one.
pub(crate) fn others_go_between(node: &Node) -> Result<()> {
    let proxy = node.start_by(node.command(&["--v=4"]))?;
    node.trouble("restore", GATE)?;
    node.manifests
        .write("large.json", &large(PORTS, ENDPOINTS, 9).to_string())?;
    wait::until("it has begun", || {
        let (_, all) = batches(node, "")?;
        ensure!(all >= 3, "{all} batches");
        Ok(())
    })?;
    let reads = || proxy.log().matches("manifests read").count();
    let before = reads();
    node.manifests.apply(&late())?;
    // While the batch is held up.
    wait::until("the manifest is read", || {
        ensure!(reads() > before, "it is not");
        Ok(())
    })?;
    fs::write(node.file("go"), "")?;
    is_complete(node)?;
    let (late, all) = batches(node, "default/late")?;
    let first = late.first().copied().unwrap_or(usize::MAX);
    ensure!(first + 2 < all, "batch {first} of {all}");
    Ok(())
}

/// A proxy that is killed between two parts, with a batch under way, loses nothing.
pub(crate) fn kill_between_parts(node: &Node) -> Result<()> {
    let proxy = node.start()?;
    node.trouble("restore", GATE)?;
    node.manifests
        .write("large.json", &large(PORTS, ENDPOINTS, 9).to_string())?;
    node.manifests.apply(&late())?;
    wait::until("it has begun", || {
        let (_, all) = batches(node, "")?;
        ensure!(all >= 3, "{all} batches");
        Ok(())
    })?;
    proxy.kill()?;
    let _next = {
        fs::write(node.file("go"), "")?;
        node.start()?
    };
    is_complete(node)
}

/// A Service that asks for far too much is created, changed and deleted. The change of another one
/// is in one of the next batches each time, whatever is left to do, and no batch is long.
pub(crate) fn nobody_waits_for_a_tenant(node: &Node) -> Result<()> {
    let proxy = node.start()?;
    node.manifests.apply(&late())?;
    node.wait_for_rule(Family::V4, "default/late:tcp-80 cluster IP", true)?;
    node.trouble("restore", KEEP)?;
    let manifest = |net| large(TOO_MANY_PORTS, TOO_MANY_ENDPOINTS, net).to_string();
    // What it has of its budget at the end of each step: so many rules for pods of this net.
    let steps = [
        (
            "created",
            Some(manifest(8)),
            Host::Web4,
            ("10.1.8.", WITHIN_BUDGET),
        ),
        (
            "changed",
            Some(manifest(9)),
            Host::Web2,
            ("10.1.9.", WITHIN_BUDGET),
        ),
        ("deleted", None, Host::Web4, ("10.1.9.", 0)),
    ];
    let reads = || proxy.log().matches("manifests read").count();
    for (what, manifest, endpoint, (net, wanted)) in steps {
        let (_, before) = batches(node, "")?;
        match manifest {
            Some(text) => node.manifests.write("large.json", &text)?,
            None => node.manifests.remove("large.json")?,
        }
        wait::until(&format!("it is being {what}"), || {
            let (_, all) = batches(node, "")?;
            ensure!(all >= before + 2, "{all} batches");
            Ok(())
        })?;
        let (known, _) = batches(node, "default/late")?;
        let (reads_before, start) = (reads(), wait::now());
        node.manifests
            .apply(&Service::new("late", 3, &[endpoint]))?;
        wait::until("the manifest is read", || {
            ensure!(reads() > reads_before, "it is not");
            Ok(())
        })?;
        let (_, at) = batches(node, "")?;
        let written = wait::until("the other one's change is written", || {
            let (found, _) = batches(node, "default/late")?;
            let news = found.into_iter().find(|n| !known.contains(n));
            news.context("it is not")
        })?;
        let took = start.elapsed();
        let mut all = at;
        wait::until("it is over", || {
            let (_, now) = batches(node, "")?;
            let is_over = std::mem::replace(&mut all, now) == now;
            let rounds = node.state("?limit=0")?;
            let is_idle = rounds["families"]["IPv4"]["isPending"] == false;
            ensure!(is_over && is_idle, "{now} batches, {}", rounds["families"]);
            let rules = node.rules(Family::V4)?;
            let rules = rules.iter().filter(|rule| rule.contains(net)).count();
            ensure!(rules == wanted, "{rules} rules");
            Ok(())
        })?;
        eprintln!("{what}: batch {written} of {before} to {all}, read at {at}, after {took:?}");
        ensure!(all >= before + 8, "{what}: {before} to {all} batches only");
        // The round that is under way, and one of its own: each writes rules, what leads to them,
        // and deletes what is old.
        ensure!(
            written <= at + 6,
            "{what}: batch {written} of {all}, read at {at}"
        );
        for number in before + 1..=all {
            let batch = fs::read_to_string(node.file(&format!("in.{number}")))?;
            let rules = batch.lines().filter(|line| line.starts_with("-A ")).count();
            ensure!(rules <= BATCH, "{what}: batch {number} has {rules} rules");
        }
    }
    Ok(())
}
