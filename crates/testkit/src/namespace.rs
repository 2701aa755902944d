// SPDX-License-Identifier: Apache-2.0
//! Network namespaces without names: an open file keeps each alive, so the kernel removes it, and
//! all links in it, when the test program ends, however it ends. Nothing needs to be swept.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

/// The calling thread's own network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// A new namespace; even its loopback link is down.
    pub fn new() -> Result<Self> {
        let home = Self::current()?;
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        let guard = Return(&home);
        let namespace = Self::current();
        drop(guard);
        namespace
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self> {
        let file = File::open(OWN).with_context(|| format!("cannot open {OWN}"))?;
        Ok(Self { file })
    }

    /// Another handle of the same namespace.
    pub fn try_clone(&self) -> Result<Self> {
        let file = self.file.try_clone()?;
        Ok(Self { file })
    }

    /// Runs `f` on this thread inside the namespace. Sockets that it opens and programs that it
    /// starts stay in there.
    pub fn enter<T>(&self, f: impl FnOnce() -> T) -> Result<T> {
        let home = Self::current()?;
        setns(&self.file, CloneFlags::CLONE_NEWNET).context("cannot enter a namespace")?;
        let guard = Return(&home);
        let result = f();
        drop(guard);
        Ok(result)
    }

    /// A path under which other programs find the namespace while this one runs.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs a program in the namespace and returns what it printed; it must succeed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.output(program, arguments)?;
        if !output.status.success() {
            bail!(
                "{program} {}: {}: {}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a program in the namespace to its end.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = command(program);
        command.args(arguments).stdin(Stdio::null());
        self.enter(|| command.output())?
            .with_context(|| format!("cannot run {program}"))
    }

    /// Runs `ip`'s commands, one per line, in one process.
    pub fn ip(&self, commands: &str) -> Result<()> {
        let mut command = command("ip");
        command
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = self
            .enter(|| command.spawn())?
            .context("cannot run ip -batch")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(commands.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("ip -batch: {}\nof:\n{commands}", error.trim());
        }
        Ok(())
    }

    /// Writes kernel settings: pairs of a path below `/proc/sys` and a value.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (key, value) in settings {
                fs::write(format!("/proc/sys/{key}"), value)
                    .with_context(|| format!("cannot set {key} to {value}"))?;
            }
            Ok(())
        })?
    }
}

/// A name for a link that no other test gives to one, in this program or another.
pub fn link_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // At most 15 bytes: a process's number has 22 bits.
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("kpr{:x}-{next}", std::process::id())
}

/// A link between this machine's bridge of a test bed and a namespace. It goes with this, not some
/// time after the namespace.
#[derive(Debug)]
pub struct Uplink(String);

impl Uplink {
    /// The end in the namespace gets this name, and no address.
    pub fn new(to: &Namespace, name: &str, bridge: &str) -> Result<Self> {
        let uplink = Self(link_name());
        Namespace::current()?.ip(&format!(
            "link add {0} type veth peer name {name} netns {1}\nlink set {0} master {bridge} up\n",
            uplink.0,
            to.path(),
        ))?;
        // No address that comes later than the first look at all of them.
        to.ip(&format!("link set {name} addrgenmode none up\n"))?;
        Ok(uplink)
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        // The test's own failure is what counts.
        drop(Namespace::current().and_then(|here| here.ip(&format!("link del {}\n", self.0))));
    }
}

/// Takes the thread back to where it was.
struct Return<'a>(&'a Namespace);

impl Drop for Return<'_> {
    fn drop(&mut self) {
        if setns(&self.0.file, CloneFlags::CLONE_NEWNET).is_err() {
            // All that follows would happen in the wrong place.
            std::process::abort();
        }
    }
}

/// A command in the namespace of the thread that starts it.
#[expect(
    clippy::disallowed_methods,
    reason = "tests run the programs that operators use, and the proxy"
)]
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}
