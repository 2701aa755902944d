// SPDX-License-Identifier: Apache-2.0
//! Time of `iptables-restore` alone: all rules a proxy left on its node, and one small change.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kube_proxy_rs::clock::Clock;
use serde_json::{Value, json};

use crate::rounded;
use crate::world::{Backend, Node, World, find};
use kpr_testkit::namespace::{Namespace, command};

const REPETITIONS: usize = 5;

/// An unreferenced chain, so that nothing changes for packets.
const SMALL: &str = "*nat\n:KPR-BENCH - [0:0]\n-A KPR-BENCH -j RETURN\nCOMMIT\n";
const GONE: &str = "*nat\n:KPR-BENCH - [0:0]\n-X KPR-BENCH\nCOMMIT\n";

pub(super) fn measure(clock: &Clock, world: &World, node: &Node) -> anyhow::Result<Value> {
    let folder = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> anyhow::Result<std::path::PathBuf> {
        let path = folder.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    };
    let save = find("iptables-legacy-save")?.display().to_string();
    // kube-proxy's nfacct counters are separate objects, absent in a fresh namespace.
    let rules = node.namespace.run(&save, &[])?;
    let lines = rules.lines().filter(|line| !line.contains(" -m nfacct "));
    let text: String = lines.flat_map(|line| [line, "\n"]).collect();
    let all = file("all", &text)?;
    let (small, gone) = (file("small", SMALL)?, file("gone", GONE)?);
    let (mut full, mut partial) = (Vec::new(), Vec::new());
    for _ in 0..REPETITIONS {
        let fresh = Namespace::new()?;
        full.push(rounded(restore(clock, world, &fresh, &all)?.as_secs_f64()));
        partial.push(rounded(
            restore(clock, world, &node.namespace, &small)?.as_secs_f64(),
        ));
        restore(clock, world, &node.namespace, &gone)?;
    }
    Ok(json!({
        "fullSeconds": full,
        "partialSeconds": partial,
    }))
}

fn restore(
    clock: &Clock,
    world: &World,
    namespace: &Namespace,
    batch: &Path,
) -> anyhow::Result<Duration> {
    let mut restore = command(find("iptables-legacy-restore")?);
    restore
        .args(["-w", "5", "--noflush"])
        .envs(world.environment(Backend::Legacy))
        .stdin(File::open(batch)?)
        .stdout(Stdio::null());
    let begin = clock.monotonic();
    let status = namespace.enter(|| restore.status())??;
    let took = clock.monotonic().saturating_sub(begin);
    anyhow::ensure!(status.success(), "iptables-restore: {status}");
    Ok(took)
}
