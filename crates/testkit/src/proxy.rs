// SPDX-License-Identifier: Apache-2.0
//! The proxy as a process in the node's namespace: started, asked over HTTP, ended by its id.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::manifests::ManifestDirectory;
use crate::namespace::{Namespace, command};
use crate::topology::{CLUSTER_CIDRS, Family};
use crate::{oracle, wait};

pub const HEALTH_PORT: u16 = 10256;
pub const METRICS_PORT: u16 = 10249;

/// How to start it.
#[derive(Clone, Debug)]
pub struct Invocation {
    pub binary: PathBuf,
    pub manifests: PathBuf,
    /// `ipvs` or `iptables`.
    pub mode: String,
    /// Other flags.
    pub flags: Vec<String>,
}

impl Invocation {
    /// In a mode, on these manifests, without other flags.
    pub fn new(binary: &Path, manifests: &ManifestDirectory, mode: &str) -> Self {
        Self {
            binary: binary.to_owned(),
            manifests: manifests.path().to_owned(),
            mode: mode.to_owned(),
            flags: Vec::new(),
        }
    }

    /// Knows pods by their addresses, as most clusters do.
    #[must_use]
    pub fn in_cluster(self) -> Self {
        self.with(&[&format!("--cluster-cidr={CLUSTER_CIDRS}")])
    }

    /// With more flags.
    #[must_use]
    pub fn with(mut self, flags: &[&str]) -> Self {
        self.flags
            .extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    fn common_flags(&self) -> Vec<String> {
        let mut flags = vec![
            format!("--proxy-mode={}", self.mode),
            format!("--manifests={}", self.manifests.display()),
            "--hostname-override=node".to_owned(),
        ];
        // The whole tier can be run in either way.
        if self.mode == "ipvs"
            && let Ok(rules) = std::env::var("KPR_IPVS_RULES")
        {
            flags.push(format!("--ipvs-rules={rules}"));
        }
        flags.extend(self.flags.iter().cloned());
        flags
    }

    /// The command that runs it.
    pub fn command(&self) -> Command {
        let mut command = command(&self.binary);
        // The last one counts.
        command
            .args([
                format!("--healthz-bind-address=127.0.0.1:{HEALTH_PORT}"),
                format!("--metrics-bind-address=127.0.0.1:{METRICS_PORT}"),
                "--v=2".to_owned(),
            ])
            .args(self.common_flags());
        command
    }
}

/// A running proxy. It is killed when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    output: TempDir,
}

impl Proxy {
    /// Starts it in the namespace and does not wait for anything.
    pub fn spawn(node: &Namespace, mut command: Command) -> Result<Self> {
        let output = tempfile::Builder::new().prefix("kpr-log-").tempdir()?;
        let log = File::create(output.path().join("log"))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = node
            .enter(|| command.spawn())?
            .context("cannot start the proxy")?;
        Ok(Self { child, output })
    }

    /// Starts it and waits until it says that the kernel is as the manifests want it.
    pub fn start(node: &Namespace, invocation: &Invocation) -> Result<Self> {
        let mut proxy = Self::spawn(node, invocation.command())?;
        proxy.wait_until_synced(node)?;
        Ok(proxy)
    }

    /// Waits until it says that the kernel is as the manifests want it.
    pub fn wait_until_synced(&mut self, node: &Namespace) -> Result<()> {
        self.wait_until_synced_in(node, Family::ALL.len())
    }

    /// The same on a node that has so many families.
    pub fn wait_until_synced_in(&mut self, node: &Namespace, families: usize) -> Result<()> {
        let synced = wait::until("the proxy is healthy", || {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Err(status));
            }
            let health = get(node, HEALTH_PORT, "/healthz")?;
            ensure!(health.starts_with("HTTP/1.0 200"), "it says {health}");
            // Healthy without any round means only that nothing has failed yet.
            let synced = series(node, "kubeproxy_sync_proxy_rules_last_timestamp_seconds")?;
            ensure!(synced.len() == families, "synced is {synced:?}");
            Ok(Ok(()))
        });
        match synced {
            Ok(Ok(())) => oracle::addresses_are_routed(node),
            Ok(Err(status)) => bail!("the proxy ended with {status}:\n{}", self.log()),
            Err(error) => Err(error.context(format!("the proxy's log:\n{}", self.log()))),
        }
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        read(&self.output.path().join("log"))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the log has a line with all of these texts, and returns it.
    pub fn wait_for_log(&self, texts: &[&str]) -> Result<String> {
        wait::until(&format!("the log has a line with {texts:?}"), || {
            let log = self.log();
            log.lines()
                .find(|line| texts.iter().all(|text| line.contains(text)))
                .map(str::to_owned)
                .with_context(|| format!("the log is:\n{log}"))
        })
    }

    /// Kills it as the kernel would: nothing is cleaned up.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end.
    pub fn ask_to_end(&self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        Ok(kill(pid, Signal::SIGTERM)?)
    }

    /// Asks it to end and returns how it did.
    pub fn terminate(mut self) -> Result<(ExitStatus, String)> {
        self.ask_to_end()?;
        self.wait()
    }

    /// Waits until it ends by itself; returns how, and its log.
    pub fn wait(&mut self) -> Result<(ExitStatus, String)> {
        let status = wait::until("the proxy ends", || {
            self.child
                .try_wait()?
                .with_context(|| format!("it runs; its log:\n{}", self.log()))
        })?;
        Ok((status, self.log()))
    }

    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended before.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// What `kube-proxy-rs plan` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Printed {
    pub code: Option<i32>,
    pub text: String,
    pub errors: String,
}

/// Runs `kube-proxy-rs plan` with the same flags.
pub fn plan(node: &Namespace, invocation: &Invocation) -> Result<Printed> {
    plan_with(node, invocation, &[])
}

/// The same with more flags.
pub fn plan_with(node: &Namespace, invocation: &Invocation, more: &[&str]) -> Result<Printed> {
    let flags = invocation.common_flags();
    let mut arguments = vec!["plan"];
    arguments.extend(flags.iter().map(String::as_str));
    arguments.extend(more);
    ask_proxy(node, &invocation.binary, &arguments)
}

/// Waits until the plan is empty.
pub fn nothing_is_left(node: &Namespace, invocation: &Invocation, when: &str) -> Result<()> {
    wait::until(&format!("nothing is left to do {when}"), || {
        let planned = plan(node, invocation)?;
        ensure!(
            planned.code == Some(0),
            "{}{}",
            planned.text,
            planned.errors
        );
        Ok(())
    })
}

/// Runs the program in the node's network namespace, until it ends.
pub fn ask_proxy(node: &Namespace, binary: &Path, arguments: &[&str]) -> Result<Printed> {
    let mut command = command(binary);
    command.args(arguments).stdin(Stdio::null());
    let output = node
        .enter(|| command.output())?
        .with_context(|| format!("cannot run kube-proxy-rs {arguments:?}"))?;
    Ok(Printed {
        code: output.status.code(),
        text: String::from_utf8_lossy(&output.stdout).into_owned(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// All metrics as text.
pub fn metrics(node: &Namespace) -> Result<String> {
    let answer = get(node, METRICS_PORT, "/metrics")?;
    ensure!(answer.starts_with("HTTP/1.0 200"), "/metrics says {answer}");
    Ok(answer)
}

/// What the proxy shows of itself.
pub fn state(node: &Namespace, query: &str) -> Result<Value> {
    let answer = get(node, METRICS_PORT, &format!("/state{query}"))?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    serde_json::from_str(body).with_context(|| answer.clone())
}

/// The series of a metric.
pub fn series(node: &Namespace, name: &str) -> Result<BTreeMap<String, f64>> {
    let mut found = BTreeMap::new();
    for line in metrics(node)?.lines() {
        if let Some((series, value)) = line.rsplit_once(' ')
            && series.split('{').next() == Some(name)
        {
            found.insert(series.to_owned(), value.parse()?);
        }
    }
    Ok(found)
}

/// The sum of the series of a metric; zero if there is none.
pub fn metric(node: &Namespace, name: &str) -> Result<f64> {
    Ok(series(node, name)?.values().sum())
}

/// What a server on the node's loopback address answers, header included.
pub fn get(node: &Namespace, port: u16, path: &str) -> Result<String> {
    get_at(node, (Ipv4Addr::LOCALHOST, port).into(), path)
}

/// What a server answers to a client, header included.
pub fn get_at(from: &Namespace, to: SocketAddr, path: &str) -> Result<String> {
    let limit = Duration::from_secs(5);
    let mut stream = from.enter(|| TcpStream::connect_timeout(&to, limit))??;
    stream.set_read_timeout(Some(wait::LIMIT))?;
    // HTTP/1.0: nobody answers in chunks, whose borders are anywhere.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
