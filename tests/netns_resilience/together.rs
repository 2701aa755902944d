// SPDX-License-Identifier: Apache-2.0
//! Two proxies in one network namespace: the second one waits, so that they never fight.

use anyhow::{Result, ensure};

use super::node::Node;
use kpr_testkit::proxy::{HEALTH_PORT, Proxy, get};
use kpr_testkit::wait;

use super::stop::WAITS;

/// The second one says whom it waits for and changes nothing; when the first one ends it serves
/// what is there. `--cleanup` refuses meanwhile, and `plan` does not.
pub(crate) fn the_second_one_waits(node: &Node) -> Result<()> {
    let first = node.start()?;
    let before = node.all_rules()?;
    let pid = first.pid().to_string();
    // It would masquerade otherwise.
    let other = ["--cluster-cidr=10.99.0.0/16", "--bind-address-hard-fail"];
    let mut second = Proxy::spawn(&node.namespace, node.command(&other))?;
    let said = second.wait_for_log(&["another kube-proxy-rs serves this network namespace"])?;
    for text in [&format!("pid={pid}"), "mode=\"iptables\"", "since="] {
        ensure!(said.contains(text), "{text} is not in {said}");
    }
    let alive = get(&node.namespace, HEALTH_PORT, "/livez")?;
    ensure!(alive.starts_with("HTTP/1.0 200"), "it says {alive}");

    let (status, log) = Proxy::spawn(&node.namespace, node.command(&["--cleanup"]))?.wait()?;
    ensure!(!status.success(), "it cleaned up under a running proxy");
    let who = format!("another kube-proxy-rs runs here (process {pid}, mode iptables");
    ensure!(log.contains(&who) && log.contains("stop it first"), "{log}");
    ensure!(node.all_rules()? == before, "the rules changed");
    ensure!(second.is_running()?, "{}", second.log());

    let (status, log) = first.terminate()?;
    ensure!(status.success(), "{log}");
    ensure!(!log.contains("changed by another program"), "{log}");
    second.wait_for_log(&["the other proxy has ended"])?;
    second.wait_until_synced(&node.namespace)?;
    ensure!(node.all_rules()? != before, "it has other settings");
    Ok(())
}

/// The first one is busy in its start: the second one waits as well, leaves the port of the probes
/// to it, and serves when it is told to end.
pub(crate) fn a_start_has_the_lock(node: &Node) -> Result<()> {
    node.trouble("save", WAITS)?;
    let mut first = Proxy::spawn(&node.namespace, node.command(&[]))?;
    wait::until("it starts", || {
        ensure!(node.has_file("begun"), "no save has begun: {}", first.log());
        Ok(())
    })?;
    let mut second = Proxy::spawn(&node.namespace, node.command(&["--bind-address-hard-fail"]))?;
    let said = second.wait_for_log(&["another kube-proxy-rs serves this network namespace"])?;
    let whom = format!("pid={} ", first.pid());
    ensure!(said.contains(&whom), "{whom:?} is not in {said}");
    first.ask_to_end()?;
    let (status, log) = first.wait()?;
    ensure!(status.success(), "it ended with {status}:\n{log}");
    node.no_trouble("save")?;
    node.script("free", "")?;
    second.wait_until_synced(&node.namespace)
}

/// One that waits answers at a port of its own and obeys, and one that is killed leaves no lock.
pub(crate) fn a_lock_goes_with_its_process(node: &Node) -> Result<()> {
    let first = node.start()?;
    let other = ["--healthz-bind-address=127.0.0.1:10300"];
    let second = Proxy::spawn(&node.namespace, node.command(&other))?;
    second.wait_for_log(&["another kube-proxy-rs serves this network namespace"])?;
    for (path, code) in [("/livez", 200), ("/healthz", 503)] {
        let answer = get(&node.namespace, 10300, path)?;
        ensure!(
            answer.starts_with(&format!("HTTP/1.0 {code}")),
            "{path} says {answer}"
        );
    }
    let (status, log) = second.terminate()?;
    ensure!(status.success(), "{status}:\n{log}");
    first.kill()?;
    let third = node.start()?;
    let log = third.log();
    ensure!(!log.contains("another kube-proxy-rs"), "{log}");
    wait::until("it serves", || {
        let health = get(&node.namespace, HEALTH_PORT, "/healthz")?;
        ensure!(health.starts_with("HTTP/1.0 200"), "it says {health}");
        Ok(())
    })
}
