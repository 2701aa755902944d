// SPDX-License-Identifier: Apache-2.0
//! Runs every test in a process of its own in a fresh network namespace.
//!
//! What this kernel or machine lacks makes the tests that need it read *ignored*; with the variable
//! that the test program names (such as `REQUIRE_KERNEL=1`) that is a failure.

use std::process::{Command, ExitCode, Output};

use libtest_mimic::{Arguments, Failed, Trial};

/// Makes this program run one test, in the namespace that it finds itself in.
pub const RUN_ONE: &str = "--run-one";
/// Makes this program print which [`Need`]s are met.
const PROBE: &str = "--probe";

/// What a test needs of the kernel and of the machine's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Namespaces,
    Ipset,
    Dummy,
    Veth,
    Legacy,
    Nft,
}

impl Need {
    const ALL: [Self; 6] = [
        Self::Namespaces,
        Self::Ipset,
        Self::Dummy,
        Self::Veth,
        Self::Legacy,
        Self::Nft,
    ];

    /// Tries it in a fresh namespace.
    fn is_met(self) -> bool {
        match self {
            Self::Namespaces => true,
            Self::Ipset => {
                succeeds("ipset", &["create", "probe", "hash:ip,port,net"])
                    && succeeds("ipset", &["destroy", "probe"])
            }
            Self::Dummy => succeeds("ip", &["link", "add", "probe0", "type", "dummy"]),
            Self::Veth => succeeds(
                "ip",
                &["link", "add", "probe1", "type", "veth", "peer", "probe2"],
            ),
            Self::Legacy => succeeds("iptables-legacy", &["-t", "nat", "-N", "PROBE"]),
            Self::Nft => succeeds("iptables-nft", &["-t", "nat", "-N", "PROBE"]),
        }
    }
}

/// A test: its name, what it needs, what it does.
pub type Test = (&'static str, &'static [Need], fn());

/// A part of a test that runs in a process of its own, with fewer rights.
pub type Inner = (&'static str, fn());

pub fn main(required_by: &str, tests: Vec<Test>, inner: &[Inner]) -> ExitCode {
    let mut own = std::env::args().skip(1);
    match (own.next().as_deref(), own.next()) {
        (Some(PROBE), _) => {
            for need in Need::ALL.into_iter().filter(|need| need.is_met()) {
                println!("{need:?}");
            }
            return ExitCode::SUCCESS;
        }
        (Some(RUN_ONE), Some(name)) => {
            let tests = tests.iter().map(|(name, _, test)| (*name, *test));
            let (_, test) = tests
                .chain(inner.iter().copied())
                .find(|(of, _)| *of == name)
                .unwrap();
            test();
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let mut arguments = Arguments::from_args();
    // The lock of iptables is shared, and so is the module cache of a guest.
    arguments.test_threads = Some(1);
    let probe = in_namespace(&[PROBE]);
    let met = String::from_utf8_lossy(&probe.stdout).into_owned();
    let required = std::env::var_os(required_by).is_some_and(|value| value == "1");
    let trials = tests
        .into_iter()
        .map(|(name, needs, _)| {
            let lacking: Vec<&Need> = needs
                .iter()
                .filter(|need| !met.lines().any(|line| line == format!("{need:?}")))
                .collect();
            let obstacle = (!lacking.is_empty()).then(|| format!("needs {lacking:?}"));
            if let Some(obstacle) = &obstacle {
                eprintln!("{name}: {obstacle}");
            }
            let ignored = obstacle.is_some() && !required;
            Trial::test(name, move || {
                obstacle.map_or_else(|| run_one(name), |o| Err(o.into()))
            })
            .with_ignored_flag(ignored)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn run_one(name: &str) -> Result<(), Failed> {
    let output = in_namespace(&[RUN_ONE, name]);
    print!("{}", String::from_utf8_lossy(&output.stdout));
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned().into())
}

/// This program in a network namespace that ends with it.
#[expect(
    clippy::disallowed_methods,
    reason = "each test is a process of its own"
)]
fn in_namespace(arguments: &[&str]) -> Output {
    let own = std::env::current_exe().unwrap();
    // A lock file of its own: that of the machine is none of our business.
    let lock = tempfile::NamedTempFile::new().unwrap();
    Command::new("unshare")
        .arg("--net")
        .arg(own)
        .args(arguments)
        .env("XTABLES_LOCKFILE", lock.path())
        .output()
        .unwrap()
}

// === the independent readers ===

#[expect(
    clippy::disallowed_methods,
    reason = "an oracle, not the program under test"
)]
pub fn output_of(program: &str, arguments: &[&str]) -> Option<Output> {
    Command::new(program).args(arguments).output().ok()
}

pub fn succeeds(program: &str, arguments: &[&str]) -> bool {
    output_of(program, arguments).is_some_and(|output| output.status.success())
}

/// Output of a program that must succeed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = output_of(program, arguments).unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}
