// SPDX-License-Identifier: Apache-2.0
//! Changes of more rules than one batch of nft should have.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::node::{Node, late};
use kpr_testkit::topology::Family;
use kpr_testkit::wait;

const PORTS: usize = 1_000;
const ENDPOINTS: usize = 30;

/// Ports of one `EndpointSlice`: no more are allowed.
const OF_A_SLICE: usize = 100;

/// Numbers and keeps the batches, and lets none but the first two pass before there is a file `go`.
const GATE: &str = r#"dir=$(dirname "$0")
n=$(($(cat "$dir/n" 2>/dev/null || echo 0) + 1)); echo $n >"$dir/n"
cat >"$dir/in.$n"
while [ $n -gt 2 ] && [ ! -e "$dir/go" ]; do sleep 0.05; done
PATH=${PATH#*:} "${0##*/}" "$@" <"$dir/in.$n"
exit $?
"#;

/// A Service of so many ports, with its slices.
fn large() -> Value {
    let port = |port: usize| json!({ "name": format!("p{port}"), "port": port, "protocol": "TCP" });
    let ports = |range: std::ops::Range<usize>| range.map(port).collect::<Vec<_>>();
    let endpoints: Vec<Value> = (1..=ENDPOINTS)
        .map(|n| json!({ "addresses": [format!("10.1.9.{n}")] }))
        .collect();
    let slices = (0..PORTS / OF_A_SLICE).map(|n| {
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
            "ports": ports(1..PORTS + 1),
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
        let Ok(batch) = fs::read_to_string(node.file(&format!("in.{}", number + 1))) else {
            return Ok((found, number));
        };
        number += 1;
        if batch.contains(text) {
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
    node.manifests.write("large.json", &large().to_string())?;
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
    node.manifests.write("large.json", &large().to_string())?;
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
