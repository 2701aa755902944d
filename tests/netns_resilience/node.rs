// SPDX-License-Identifier: Apache-2.0
//! A node that is nothing but a namespace: no packets flow, the rules are what is looked at.
//! Between the proxy and iptables stand scripts that tests can make fail.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use kpr_testkit::manifests::{ManifestDirectory, Service};
use kpr_testkit::namespace::{Namespace, command};
use kpr_testkit::proxy::{Invocation, Proxy, metric, series, state};
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::wait;

/// One of the two iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Legacy,
    Nft,
}

impl Backend {
    pub(crate) const ALL: [Self; 2] = [Self::Legacy, Self::Nft];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Nft => "nft",
        }
    }
}

/// Runs the real program unless a file beside it says what to do instead.
const WRAPPER: &str = r#"#!/bin/sh
trouble="$(dirname "$0")/trouble-${0##*-}"
if [ "$1" != --version ] && [ -e "$trouble" ]; then . "$trouble"; fi
PATH=${PATH#*:}
exec "${0##*/}" "$@"
"#;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) namespace: Namespace,
    pub(crate) backend: Backend,
    pub(crate) manifests: ManifestDirectory,
    binary: PathBuf,
    /// The scripts, the lock file and files for the scripts.
    directory: TempDir,
}

impl Node {
    pub(crate) fn new(binary: &Path, backend: Backend) -> Result<Self> {
        let namespace = Namespace::new()?;
        namespace.ip("link set lo up\n")?;
        let directory = tempfile::Builder::new().prefix("kpr-node-").tempdir()?;
        let node = Self {
            namespace,
            backend,
            manifests: ManifestDirectory::new(&services())?,
            binary: binary.to_owned(),
            directory,
        };
        fs::write(node.lock(), "")?;
        for family in Family::ALL {
            for what in ["save", "restore"] {
                node.script(&format!("{}-{what}", node.program(family)), WRAPPER)?;
            }
        }
        Ok(node)
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.directory.path().join("lock")
    }

    /// Puts a program before all others of its name.
    pub(crate) fn script(&self, name: &str, text: &str) -> Result<()> {
        let path = self.directory.path().join(name);
        fs::write(&path, text)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// A file beside the scripts.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Whether a script has made this file beside it.
    pub(crate) fn has_file(&self, name: &str) -> bool {
        self.directory.path().join(name).exists()
    }

    /// From here on `save` or `restore` first run this; if it does not exit they go on.
    pub(crate) fn trouble(&self, what: &str, script: &str) -> Result<()> {
        let name = format!("trouble-{what}");
        // At once: a script may just be starting.
        let new = self.directory.path().join("new");
        fs::write(&new, script)?;
        fs::rename(new, self.directory.path().join(name))?;
        Ok(())
    }

    pub(crate) fn no_trouble(&self, what: &str) -> Result<()> {
        let name = format!("trouble-{what}");
        Ok(fs::remove_file(self.directory.path().join(name))?)
    }

    /// `iptables-nft` and the like.
    pub(crate) fn program(&self, family: Family) -> String {
        let base = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{base}-{}", self.backend.as_str())
    }

    /// From here on there are no programs for the proxy but these scripts.
    pub(crate) fn only(&self, scripts: &[(&str, &str)]) -> Result<()> {
        for entry in fs::read_dir(self.directory.path())? {
            let path = entry?.path();
            if path.to_string_lossy().contains("tables-") {
                fs::remove_file(path)?;
            }
        }
        for (name, text) in scripts {
            self.script(name, text)?;
        }
        Ok(fs::write(self.directory.path().join("only"), "")?)
    }

    /// The command that runs the proxy. An hour passes before an audit comes.
    pub(crate) fn command(&self, flags: &[&str]) -> Command {
        let mut command = Invocation::new(&self.binary, &self.manifests, "iptables").command();
        let others = std::env::var("PATH").unwrap_or_default();
        let own = self.directory.path().display();
        let path = if self.directory.path().join("only").exists() {
            own.to_string()
        } else {
            format!("{own}:{others}")
        };
        command
            .arg("--iptables-sync-period=1h")
            .arg(format!("--iptables-backend={}", self.backend.as_str()))
            .args(flags)
            .env("PATH", path)
            .env("XTABLES_LOCKFILE", self.lock());
        command
    }

    /// Starts the proxy and waits until both families are programmed.
    pub(crate) fn start(&self) -> Result<Proxy> {
        self.start_by(self.command(&[]))
    }

    /// The same by this command.
    pub(crate) fn start_by(&self, command: Command) -> Result<Proxy> {
        let mut proxy = Proxy::spawn(&self.namespace, command)?;
        let synced = wait::until("both families are programmed", || {
            ensure!(proxy.is_running()?, "it ended");
            let synced = series(
                &self.namespace,
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            )?;
            ensure!(synced.len() == 2, "synced is {synced:?}");
            Ok(())
        });
        synced.with_context(|| format!("its log:\n{}", proxy.log()))?;
        Ok(proxy)
    }

    /// The proxy does not start, and says why with all of these words. No rules of it are there.
    pub(crate) fn refuses_to_start(&self, flags: &[&str], words: &[&str]) -> Result<()> {
        let (status, log) = Proxy::spawn(&self.namespace, self.command(flags))?.wait()?;
        ensure!(!status.success(), "it ended with {status}:\n{log}");
        for word in words {
            ensure!(log.contains(word), "{word:?} is not in the log:\n{log}");
        }
        for family in Family::ALL {
            let rules = self.rules(family)?;
            let ours = rules.iter().any(|rule| rule.contains("KUBE-"));
            ensure!(!ours, "there are rules: {rules:?}");
        }
        Ok(())
    }

    /// Chains and rules of a family, sorted within their tables as `iptables-save` prints them,
    /// without counters.
    pub(crate) fn rules(&self, family: Family) -> Result<Vec<String>> {
        let text = self
            .namespace
            .run(&format!("{}-save", self.program(family)), &[])?;
        let mut table = "";
        let mut rules = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            } else if line != "COMMIT" {
                let rule = match line.split_once(" [") {
                    Some((declaration, _)) if line.starts_with(':') => declaration,
                    _ => line,
                };
                rules.push(format!("{table} {rule}"));
            }
        }
        Ok(rules)
    }

    /// Rules of both families.
    pub(crate) fn all_rules(&self) -> Result<Vec<Vec<String>>> {
        Family::ALL
            .into_iter()
            .map(|family| self.rules(family))
            .collect()
    }

    /// Waits until the rules hold, or do not hold, a text.
    pub(crate) fn wait_for_rule(&self, family: Family, text: &str, present: bool) -> Result<()> {
        wait::until(&format!("{text} is there: {present}"), || {
            let rules = self.rules(family)?;
            let found = rules.iter().any(|rule| rule.contains(text));
            ensure!(found == present, "{}", rules.join("\n"));
            Ok(())
        })
    }

    /// Somebody else makes a batch of changes at once.
    pub(crate) fn other(&self, family: Family, batch: &str) -> Result<()> {
        let mut restore = command(format!("{}-restore", self.program(family)));
        restore
            .args(["-w", "10", "--noflush"])
            .env("XTABLES_LOCKFILE", self.lock())
            .stdin(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.namespace.enter(|| restore.spawn())??;
        child
            .stdin
            .take()
            .context("no stdin")?
            .write_all(batch.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("{batch}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        metric(&self.namespace, name)
    }

    /// What the proxy shows of itself.
    pub(crate) fn state(&self, query: &str) -> Result<Value> {
        state(&self.namespace, query)
    }

    /// Waits until a series is one or more: what it counts may be logged or seen before it is
    /// counted.
    pub(crate) fn counts(&self, series_name: &str) -> Result<()> {
        wait::until(&format!("{series_name} counts"), || {
            let count = self.series(series_name)?;
            ensure!(count >= 1.0, "it is {count}");
            Ok(())
        })
    }

    /// One series, zero if there is none.
    pub(crate) fn series(&self, series_name: &str) -> Result<f64> {
        let name = series_name.split('{').next().unwrap_or(series_name);
        let found = series(&self.namespace, name)?;
        Ok(found.get(series_name).copied().unwrap_or_default())
    }
}

/// What is served at the start.
pub(crate) fn services() -> Vec<Service> {
    vec![
        Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed(),
        Service::new("empty", 2, &[]),
    ]
}

/// A Service that comes later.
pub(crate) fn late() -> Service {
    Service::new("late", 3, &[Host::Web2])
}
