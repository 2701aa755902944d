// SPDX-License-Identifier: Apache-2.0
//! The health server under peers that hold connections open, and when the loop hangs.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::ptrace;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::node::{Node, late};
use kpr_testkit::namespace::command;
use kpr_testkit::proxy::{HEALTH_PORT, Proxy, get};
use kpr_testkit::topology::Family;
use kpr_testkit::wait;

const IDLE: usize = 1_100;
const HALF_OPEN: usize = 8_000;
/// Bytes of header that each half-open connection sends.
const HEADER: usize = 60 * 1024;
/// How much the resident memory may grow, in kB.
const GROWTH: u64 = 20 * 1024;
/// Changes whose way is measured, before and during the flood.
const CHANGES: usize = 15;

/// The same command with the descriptors that container runtimes hand out.
fn with_few_descriptors(command_of: &Command) -> Command {
    let mut limited = command("prlimit");
    limited
        .arg("--nofile=1024:4096")
        .arg(command_of.get_program())
        .args(command_of.get_args());
    for (name, value) in command_of.get_envs() {
        limited.env(name, value.unwrap_or_default());
    }
    limited
}

/// Idle connections and halves of requests, from the host of the probes itself: probes are
/// answered, memory stays, changes arrive, and programs and sockets have their descriptors.
pub(crate) fn stand_floods(node: &Node) -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let proxy = node.start_by(with_few_descriptors(&node.command(&[])))?;
    get(&node.namespace, HEALTH_PORT, "/livez")?;
    let memory = resident(&proxy)?;
    let before = changes(node)?;
    let mut held = Vec::new();
    for _ in 0..IDLE {
        held.push(connect(node)?);
    }
    let half = format!(
        "GET /livez HTTP/1.1\r\nHost: x\r\nX-Filler: {}",
        "x".repeat(HEADER)
    );
    for _ in 0..HALF_OPEN {
        let mut stream = connect(node)?;
        // The server may refuse it in the middle.
        drop(stream.write_all(half.as_bytes()));
        held.push(stream);
    }
    for path in ["/livez", "/healthz"] {
        let answer = get(&node.namespace, HEALTH_PORT, path)?;
        ensure!(answer.starts_with("HTTP/1.0 200"), "{path} says {answer}");
    }
    let after = changes(node)?;
    let grown = resident(&proxy)?.saturating_sub(memory);
    eprintln!(
        "{} connections: memory {memory} kB and {grown} kB, a change takes {before:?}, then {after:?}: ratio {:.2}",
        held.len(),
        after.as_secs_f64() / before.as_secs_f64(),
    );
    ensure!(grown < GROWTH, "{grown} kB more memory");
    let descriptors = fs::read_dir(format!("/proc/{}/fd", proxy.pid()))?.count();
    ensure!(descriptors < 256, "{descriptors} descriptors");
    let limits = fs::read_to_string(format!("/proc/{}/limits", proxy.pid()))?;
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    ensure!(
        files.is_some_and(|line| line.matches("4096").count() == 2),
        "{files:?}"
    );
    let log = proxy.log();
    ensure!(!log.contains("Too many open files"), "{log}");
    Ok(())
}

fn connect(node: &Node) -> Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, HEALTH_PORT));
    let stream = node.namespace.enter(|| TcpStream::connect(address))??;
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    Ok(stream)
}

/// `VmRSS`, in kB.
fn resident(proxy: &Proxy) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", proxy.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("no VmRSS")?.parse()?)
}

/// The median of the times from a changed manifest to its rule.
fn changes(node: &Node) -> Result<Duration> {
    let mut times = Vec::new();
    for round in 0..CHANGES {
        let start = wait::now();
        let is_there = round % 2 == 0;
        if is_there {
            node.manifests.apply(&late())?;
        } else {
            node.manifests.remove("late.json")?;
        }
        node.wait_for_rule(Family::V4, "default/late:tcp-80 cluster IP", is_there)?;
        times.push(start.elapsed());
    }
    node.manifests.remove("late.json")?;
    node.wait_for_rule(Family::V4, "default/late:tcp-80 cluster IP", false)?;
    times.sort();
    times.get(CHANGES / 2).copied().context("no changes")
}

/// The sync thread alone stands still: `/livez` says so, also when nothing changes.
pub(crate) fn see_a_loop_that_hangs(node: &Node) -> Result<()> {
    let proxy = node.start_by(node.command(&["--iptables-sync-period=2s"]))?;
    let alive = get(&node.namespace, HEALTH_PORT, "/livez")?;
    ensure!(alive.starts_with("HTTP/1.0 200"), "it says {alive}");
    let thread = Pid::from_raw(thread_of(&proxy, "sync")?);
    ptrace::seize(thread, ptrace::Options::empty())?;
    ptrace::interrupt(thread)?;
    waitpid(thread, Some(WaitPidFlag::__WALL))?;
    node.manifests.apply(&late())?;
    wait::until("the hang is seen", || {
        for path in ["/livez", "/healthz"] {
            let answer = get(&node.namespace, HEALTH_PORT, path)?;
            ensure!(answer.starts_with("HTTP/1.0 503"), "{path} says {answer}");
        }
        Ok(())
    })?;
    ensure!(node.metric("kube_proxy_rs_loop_last_turn_timestamp_seconds")? > 0.0);
    ptrace::detach(thread, None)?;
    wait::until("it is over", || {
        let answer = get(&node.namespace, HEALTH_PORT, "/livez")?;
        ensure!(answer.starts_with("HTTP/1.0 200"), "it says {answer}");
        Ok(())
    })?;
    node.wait_for_rule(Family::V4, "default/late", true)
}

fn thread_of(proxy: &Proxy, name: &str) -> Result<i32> {
    for entry in fs::read_dir(format!("/proc/{}/task", proxy.pid()))? {
        let entry = entry?;
        let mut found = String::new();
        fs::File::open(entry.path().join("comm"))?.read_to_string(&mut found)?;
        if found.trim() == name {
            return Ok(entry.file_name().to_string_lossy().parse()?);
        }
    }
    anyhow::bail!("no thread {name}")
}
