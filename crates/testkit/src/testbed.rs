// SPDX-License-Identifier: Apache-2.0
//! A control plane that `hack/testbed/up` started: kubectl as a user, its API server stopped and
//! started, its etcd changed behind the server's back. Knows nothing of the proxy.

#![expect(
    clippy::disallowed_methods,
    reason = "kubectl and the scripts of the test bed are started"
)]

mod odd;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};

use anyhow::Context as _;
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use odd::{odd_node, odd_node_status};

/// A test: its name and what it does.
pub type Test = (&'static str, fn(&Testbed) -> anyhow::Result<()>);

/// Runs tests with the test bed that `KPR_TESTBED` names; without one they are ignored.
pub fn run(tests: &[Test]) -> ExitCode {
    run_each(tests, |testbed, test| test(testbed))
}

/// The same for tests that are played in a way of their own.
pub fn run_each<T: Copy + Send + 'static>(
    tests: &[(&'static str, T)],
    play: fn(&Testbed, T) -> anyhow::Result<()>,
) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One API server for all.
    arguments.test_threads = Some(1);
    let testbed = std::env::var_os("KPR_TESTBED").map(PathBuf::from);
    let trial = |(name, test): (&'static str, T)| {
        let directory = testbed.clone();
        let run = move || {
            let directory = directory.ok_or("KPR_TESTBED is not set")?;
            let testbed = Testbed::open(&directory)?;
            play(&testbed, test).map_err(|error| Failed::from(format!("{error:?}")))
        };
        Trial::test(name, run).with_ignored_flag(testbed.is_none())
    };
    libtest_mimic::run(&arguments, tests.iter().copied().map(trial).collect()).exit_code()
}

/// The folder of a test bed, and what its `env` file says.
#[derive(Clone, Debug)]
pub struct Testbed {
    directory: PathBuf,
    env: BTreeMap<String, String>,
}

impl Testbed {
    pub fn open(directory: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(directory.join("env"))
            .map_err(|error| format!("no test bed in {}: {error}", directory.display()))?;
        let env = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Ok(Self {
            directory: directory.to_owned(),
            env,
        })
    }

    pub fn env(&self, name: &str) -> &str {
        self.env.get(name).expect("the test bed says so")
    }

    /// Address and port of the API server.
    pub fn api_server(&self) -> String {
        format!("{}:{}", self.env("HOST4"), self.env("API_PORT"))
    }

    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.directory.join(format!("{user}.kubeconfig"))
    }

    /// Runs kubectl as a user.
    pub fn kubectl_as(&self, user: &str, arguments: &[&str], input: &str) -> Output {
        let built = Path::new(self.env("BIN")).join("kubectl");
        let program = if built.exists() {
            built
        } else {
            PathBuf::from("kubectl")
        };
        let mut child = Command::new(program)
            .arg("--kubeconfig")
            .arg(self.kubeconfig(user))
            .arg("--cache-dir")
            .arg(self.directory.join("kubectl-cache"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        let mut stdin = child.stdin.take().expect("it is piped");
        stdin.write_all(input.as_bytes()).expect("kubectl reads");
        drop(stdin);
        child.wait_with_output().expect("kubectl ends")
    }

    /// Runs kubectl as the administrator and returns what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        succeeded(arguments, &self.kubectl_as("admin", arguments, ""))
    }

    pub fn apply(&self, manifest: &str) {
        let arguments = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        succeeded(&arguments, &self.kubectl_as("admin", &arguments, manifest));
    }

    /// What a kubelet says of its node.
    pub fn set_addresses(&self, node: &str, addresses: &[impl Display]) {
        let addresses: Vec<_> = addresses
            .iter()
            .map(
                |address| serde_json::json!({"type": "InternalIP", "address": address.to_string()}),
            )
            .collect();
        let status = serde_json::json!({"status": {"addresses": addresses}});
        self.kubectl(&[
            "patch",
            "node",
            node,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status.to_string(),
        ]);
    }

    /// `stop` or `start`.
    pub fn apiserver(&self, action: &str) {
        self.script(&format!("apiserver-{action}"), &[]);
    }

    /// Ends the API server without giving it time for anything.
    pub fn kill_apiserver(&self) {
        self.script("apiserver-stop", &["--kill"]);
    }

    /// Stops the API server where it is, as a machine that swaps or a paused virtual machine does;
    /// the kernel goes on to answer for its connections. It goes on when this is dropped.
    pub fn freeze_apiserver(&self) -> anyhow::Result<Frozen> {
        let file = self.directory.join("kube-apiserver.pid");
        let text = std::fs::read_to_string(&file)?;
        let pid = text.split_whitespace().next().context("no process")?;
        let frozen = Frozen(Pid::from_raw(pid.parse()?));
        kill(frozen.0, Signal::SIGSTOP)?;
        Ok(frozen)
    }

    /// A program that `hack/testbed/build` makes; it is built unless it is there.
    pub fn built(name: &str) -> Result<PathBuf, String> {
        let script = crate::repository().join("hack/testbed/build");
        let output = Command::new(script).arg(name).output();
        let output = output.map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok(Path::new(&folder).join(name))
    }

    /// Runs a script of the test bed and returns what it prints.
    pub fn script(&self, name: &str, options: &[&str]) -> String {
        let script = crate::repository().join("hack/testbed").join(name);
        let output = Command::new(script)
            .arg(&self.directory)
            .args(options)
            .output()
            .expect("the script starts");
        succeeded(&[name], &output)
    }

    /// A request to etcd's HTTP gateway, and its answer.
    pub fn etcd(&self, path: &str, body: &str) -> String {
        let url = format!("{}{path}", self.env("ETCD"));
        let arguments = ["-sSf", "--max-time", "20", "--data", body, &url];
        let output = Command::new("curl")
            .args(arguments)
            .output()
            .expect("curl starts");
        succeeded(&arguments, &output)
    }

    /// Deletes an object in etcd, so that no watch ever tells of it.
    pub fn delete_from_etcd(&self, key: &str) {
        let key = base64(key);
        self.etcd("/v3/kv/deleterange", &format!(r#"{{"key": "{key}"}}"#));
    }

    /// Makes etcd's history longer; returns etcd's answer to the last write.
    pub fn move_history_on(&self) -> String {
        let key = base64("/kpr/history");
        let body = format!(r#"{{"key": "{key}", "value": "{key}"}}"#);
        let answers: Vec<String> = (0..10).map(|_| self.etcd("/v3/kv/put", &body)).collect();
        answers.last().expect("there are ten").clone()
    }
}

/// A program of operators.
pub fn program(path: &Path) -> Command {
    Command::new(path)
}

/// What a command printed that must have succeeded.
pub fn succeeded(arguments: &[&str], output: &Output) -> String {
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{arguments:?}: {printed}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    printed
}

/// Objects that are deleted with this.
pub struct Objects<'a>(&'a Testbed, String);

impl<'a> Objects<'a> {
    pub fn new(testbed: &'a Testbed, manifests: &str) -> Self {
        let objects = Self(testbed, manifests.to_owned());
        testbed.apply(manifests);
        objects
    }
}

impl Drop for Objects<'_> {
    fn drop(&mut self) {
        let arguments = ["delete", "--ignore-not-found", "--wait=false", "-f", "-"];
        // The test's own failure is what counts.
        drop(self.0.kubectl_as("admin", &arguments, &self.1));
    }
}

/// Starts the API server again, also when the test fails.
pub struct Restart<'a>(pub &'a Testbed);

impl Drop for Restart<'_> {
    fn drop(&mut self) {
        self.0.apiserver("start");
    }
}

/// An API server that stands still.
#[derive(Debug)]
pub struct Frozen(Pid);

impl Drop for Frozen {
    fn drop(&mut self) {
        // Without it the test's own failure is what counts.
        kill(self.0, Signal::SIGCONT).ok();
    }
}

/// etcd's gateway takes keys in this form.
fn base64(text: &str) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 0x3f;
            encoded.push(if digit <= chunk.len() {
                char::from(DIGITS[value as usize])
            } else {
                '='
            });
        }
    }
    encoded
}
