// SPDX-License-Identifier: Apache-2.0
//! A real Prometheus with the rules of `deploy/prometheus`, that scrapes one proxy. Knows nothing
//! of what the metrics mean.

#![expect(
    clippy::disallowed_methods,
    reason = "prometheus and promtool are programs of this machine"
)]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::wait;
use tempfile::TempDir;

/// The label `cluster` that all series get, as in a setup of many clusters.
pub const CLUSTER: &str = "test";

/// The folder of `prometheus` and `promtool`; builds them where they are not there yet.
pub fn programs() -> Result<PathBuf> {
    let output = Command::new(in_repository("hack/prometheus/build"))
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "hack/prometheus/build failed");
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// A file of the repository.
pub fn in_repository(path: &str) -> PathBuf {
    crate::repository().join(path)
}

/// Runs promtool; what it says is the error when it fails.
pub fn promtool(arguments: &[&str]) -> Result<String> {
    let output = Command::new(programs()?.join("promtool"))
        .args(arguments)
        .current_dir(in_repository("."))
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "promtool {arguments:?}: {said}");
    Ok(said.into_owned())
}

/// A running Prometheus. It is killed, and its data removed, when this is dropped.
#[derive(Debug)]
pub struct Prometheus {
    process: Child,
    address: SocketAddr,
    files: TempDir,
}

impl Prometheus {
    /// Scrapes `target` every second as the job `kube-proxy`.
    pub fn start(target: SocketAddr) -> Result<Self> {
        let files = tempfile::Builder::new().prefix("kpr-prom-").tempdir()?;
        let rules = in_repository("deploy/prometheus");
        let configuration = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}/rules.yaml, {rules}/alerts.yaml]
scrape_configs:
- job_name: kube-proxy
  static_configs: [{{targets: ['{target}'], labels: {{cluster: {CLUSTER}}}}}]
",
            rules = rules.display()
        );
        let file = files.path().join("prometheus.yml");
        fs::write(&file, configuration)?;
        // Nobody else asks for this port between its release and Prometheus' start.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let process = Command::new(programs()?.join("prometheus"))
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                files.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(files.path().join("log"))?)
            .spawn()?;
        Ok(Self {
            process,
            address,
            files,
        })
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.files.path().join("log")).unwrap_or_default()
    }

    /// An answer of the HTTP interface: what is in `data`.
    pub fn ask(&self, path: &str) -> Result<Value> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(wait::LIMIT))?;
        // HTTP/1.0: nobody answers in chunks.
        write!(
            stream,
            "GET /api/v1/{path} HTTP/1.0\r\nHost: prometheus\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
        let answer: Value = serde_json::from_str(body).with_context(|| body.to_owned())?;
        ensure!(answer["status"] == "success", "{path}: {body}");
        Ok(answer["data"].clone())
    }

    /// The values that a query has now, without those that are no number.
    pub fn query(&self, expression: &str) -> Result<Vec<f64>> {
        let data = self.ask(&format!("query?query={}", encoded(expression)))?;
        let series = data["result"].as_array().context("no result")?;
        let values = series.iter().map(|series| series["value"][1].as_str());
        values
            .filter_map(|value| {
                value
                    .context("no value")
                    .and_then(|value| Ok(value.parse()?))
                    .map(|value: f64| (!value.is_nan()).then_some(value))
                    .transpose()
            })
            .collect()
    }

    /// How often the proxy was scraped, with success or without.
    pub fn scrapes(&self) -> Result<f64> {
        let scrapes = self.query("count_over_time(up[1h])")?.pop();
        scrapes.with_context(|| format!("not scraped:\n{}", self.log()))
    }

    /// Names of all metrics that have been scraped or recorded.
    pub fn names(&self) -> Result<Vec<String>> {
        let names = self.ask("label/__name__/values")?;
        Ok(serde_json::from_value(names)?)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended before.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Text as it may stand in a URL.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}
