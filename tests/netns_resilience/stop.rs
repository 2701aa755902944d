// SPDX-License-Identifier: Apache-2.0
//! The proxy is asked to end, as a kubelet does it, at the worst moment.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::node::{Node, late};
use kpr_testkit::namespace::command;
use kpr_testkit::proxy::{HEALTH_PORT, Proxy, get};
use kpr_testkit::topology::Family;
use kpr_testkit::wait;

/// Load balancers are sent away first, the round in flight is finished, and the kernel stays as it
/// is then.
pub(crate) fn finishes_the_round(node: &Node) -> Result<()> {
    let mut proxy = node.start()?;
    let before = node.rules(Family::V4)?;
    node.trouble("restore", WAITS)?;
    node.manifests.apply(&late())?;
    wait::until("a round is in flight", || {
        ensure!(node.has_file("begun"), "no restore has begun");
        Ok(())
    })?;
    proxy.ask_to_end()?;
    wait::until("load balancers are sent away", || {
        let health = get(&node.namespace, HEALTH_PORT, "/healthz")?;
        ensure!(health.starts_with("HTTP/1.0 503"), "it says {health}");
        Ok(())
    })?;
    let alive = get(&node.namespace, HEALTH_PORT, "/livez")?;
    ensure!(alive.starts_with("HTTP/1.0 200"), "it says {alive}");
    ensure!(proxy.is_running()?, "it did not wait for the round");
    ensure!(node.rules(Family::V4)? == before, "the round had ended");
    node.script("free", "")?;
    let (status, log) = proxy.wait()?;
    ensure!(status.success(), "it ended with {status}:\n{log}");
    for family in Family::ALL {
        let rules = node.rules(family)?;
        for name in ["default/web", "default/late"] {
            let has_rules = rules.iter().any(|rule| rule.contains(name));
            ensure!(has_rules, "{name} is not served: {rules:#?}");
        }
    }
    Ok(())
}

/// A program that does not end until it is told to, or until the test has ended.
pub(crate) const WAITS: &str = "here=$(dirname \"$0\"); touch \"$here/begun\"\n\
    while [ -d \"$here\" ] && [ ! -e \"$here/free\" ]; do sleep 0.05; done\n";

/// A slow program at the start does not keep the proxy from obeying; probes are answered meanwhile.
pub(crate) fn during_the_start(node: &Node) -> Result<()> {
    node.trouble("save", WAITS)?;
    let mut proxy = Proxy::spawn(&node.namespace, node.command(&[]))?;
    wait::until("it starts", || {
        ensure!(node.has_file("begun"), "no save has begun: {}", proxy.log());
        Ok(())
    })?;
    let alive = get(&node.namespace, HEALTH_PORT, "/livez")?;
    ensure!(alive.starts_with("HTTP/1.0 200"), "it says {alive}");
    proxy.ask_to_end()?;
    let (status, log) = proxy.wait()?;
    ensure!(status.success(), "it ended with {status}:\n{log}");
    ensure!(log.contains("received stop signal while starting"), "{log}");
    node.script("free", "")?;
    for rules in node.all_rules()? {
        let ours = rules.iter().any(|rule| rule.contains("KUBE-"));
        ensure!(!ours, "there are rules: {rules:?}");
    }
    Ok(())
}

/// The same as the first process of a container, for which the kernel drops signals that have no
/// handler.
pub(crate) fn as_process_1(node: &Node) -> Result<()> {
    node.trouble("save", WAITS)?;
    let inner = node.command(&[]);
    let mut outer = command("unshare");
    outer
        .args(["--pid", "--fork", "--kill-child"])
        .arg(inner.get_program())
        .args(inner.get_args());
    for (name, value) in inner.get_envs() {
        outer.env(name, value.unwrap_or_default());
    }
    let mut proxy = Proxy::spawn(&node.namespace, outer)?;
    wait::until("it starts", || {
        ensure!(node.has_file("begun"), "no save has begun: {}", proxy.log());
        Ok(())
    })?;
    let outer = proxy.pid();
    let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"))?;
    let first = children.split_whitespace().next().context("no child")?;
    kill(Pid::from_raw(first.parse()?), Signal::SIGTERM)?;
    let (status, log) = proxy.wait()?;
    ensure!(status.success(), "it ended with {status}:\n{log}");
    node.script("free", "")
}

/// A round that lasts longer than a kubelet waits is given up with its program, which leaves the
/// kernel as it was and does not write after the next start.
pub(crate) fn gives_up_a_long_round(node: &Node) -> Result<()> {
    let mut proxy = node.start()?;
    let before = node.rules(Family::V4)?;
    node.trouble("restore", WAITS)?;
    node.manifests.apply(&late())?;
    wait::until("a round is in flight", || {
        ensure!(node.has_file("begun"), "no restore has begun");
        Ok(())
    })?;
    proxy.ask_to_end()?;
    let (status, log) = proxy.wait()?;
    ensure!(status.success(), "it ended with {status}:\n{log}");
    ensure!(log.contains("giving it up"), "{log}");
    node.no_trouble("restore")?;
    node.script("free", "")?;
    ensure!(node.rules(Family::V4)? == before, "the rules changed");
    let _proxy = node.start()?;
    node.wait_for_rule(Family::V4, "default/late", true)
}
