// SPDX-License-Identifier: Apache-2.0
use std::collections::BTreeMap;
use std::sync::Mutex;

use super::*;
use crate::dataplane::exec::{Ended, Input, Output, Sink};
use crate::dataplane::failure::Failed as _;
use kpr_core::plan::FailureKind;
use kpr_core::plan::ruleset::{ChainName, Rule};

/// A machine with programs that always give the same answer, and a record of what was run.
#[derive(Debug, Default)]
struct Machine {
    /// By program and first argument.
    answers: BTreeMap<(String, String), Output>,
    runs: Mutex<Vec<String>>,
}

impl Machine {
    fn with(
        mut self,
        program: &str,
        arg: &str,
        status: impl Into<Option<i32>>,
        stdout: &str,
        stderr: &str,
    ) -> Self {
        let output = Output {
            ended: Ended {
                status: status.into(),
                stderr: stderr.into(),
            },
            stdout: stdout.into(),
        };
        self.answers.insert((program.into(), arg.into()), output);
        self
    }

    /// A backend with programs for both families and these rules in IPv4.
    fn with_backend(self, backend: &str, version: &str, rules: &str) -> Self {
        let v4 = format!("iptables-{backend}");
        let v6 = format!("ip6tables-{backend}");
        self.with(&format!("{v4}-save"), "", 0, rules, "")
            .with(&format!("{v6}-save"), "", 0, "", "")
            .with(&format!("{v4}-save"), "-t", 0, rules, "")
            .with(&format!("{v6}-save"), "-t", 0, "", "")
            .with(&format!("{v4}-restore"), "--version", 0, version, "")
    }
}

impl Exec for Machine {
    fn stream(
        &self,
        program: &str,
        args: &[&str],
        _stdin: Input<'_>,
        stdout: Sink<'_>,
    ) -> Result<Ended, ExecError> {
        let first = args.first().copied().unwrap_or_default();
        self.runs
            .lock()
            .unwrap()
            .push(format!("{program} {}", args.join(" ")));
        let answer = self.answers.get(&(program.to_owned(), first.to_owned()));
        let output = answer.ok_or_else(|| ExecError::Missing {
            program: program.into(),
        })?;
        stdout(&output.stdout);
        Ok(output.ended.clone())
    }

    fn started(&self) -> u64 {
        self.runs.lock().unwrap().len() as u64
    }
}

const NFT: &str = "iptables-nft-restore v1.8.9 (nf_tables)\n";
const LEGACY: &str = "iptables-legacy-restore v1.8.9 (legacy)\n";
const ONE_RULE: &str = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\nCOMMIT\n";
const TWO_RULES: &str =
    "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\n-A INPUT -j DROP\nCOMMIT\n";
const HINT: &str = "*mangle\n:PREROUTING ACCEPT [0:0]\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";
const CANARY_ELSEWHERE: &str = "*nat\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";

fn detected(machine: &Machine, wanted: Option<Backend>) -> (Backend, Reason) {
    let backends = Backends::detect(machine, wanted).unwrap();
    (backends.backend, backends.reason)
}

fn both(nft_rules: &str, legacy_rules: &str) -> Machine {
    Machine::default()
        .with_backend("nft", NFT, nft_rules)
        .with_backend("legacy", LEGACY, legacy_rules)
        .with(
            "iptables",
            "--version",
            0,
            "iptables v1.8.9 (nf_tables)\n",
            "",
        )
}

#[test]
fn kubelets_hint_outweighs_the_number_of_rules() {
    assert_eq!(
        detected(&both(HINT, TWO_RULES), None),
        (Backend::Nft, Reason::Hint)
    );
    assert_eq!(
        detected(&both(TWO_RULES, HINT), None),
        (Backend::Legacy, Reason::Hint)
    );
    assert_eq!(
        detected(&both(ONE_RULE, CANARY_ELSEWHERE), None),
        (Backend::Nft, Reason::Rules),
        "the canary counts in mangle only"
    );
}

#[test]
fn with_a_hint_or_a_setting_large_tables_are_not_read() {
    let machine = both(HINT, TWO_RULES);
    detected(&machine, None);
    let saves = |machine: &Machine| {
        let runs = machine.runs.lock().unwrap();
        let saves = runs.iter().filter(|run| run.contains("-save"));
        saves.cloned().collect::<Vec<_>>()
    };
    assert_eq!(
        saves(&machine),
        [
            "iptables-nft-save -t mangle",
            "ip6tables-nft-save -t mangle"
        ]
    );
    let machine = both(HINT, TWO_RULES);
    detected(&machine, Some(Backend::Legacy));
    assert_eq!(saves(&machine), [""; 0]);
}

#[test]
fn configured_backend_that_is_missing_is_named() {
    let machine = Machine::default().with_backend("nft", NFT, "").with(
        "iptables",
        "--version",
        0,
        "iptables v1.8.9 (nf_tables)\n",
        "",
    );
    let error = Backends::detect(&machine, Some(Backend::Legacy)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "iptables is not installed (looked for iptables-legacy-restore)"
    );
}

#[test]
fn without_a_hint_the_backend_with_more_rules_is_taken() {
    assert_eq!(
        detected(&both(ONE_RULE, TWO_RULES), None),
        (Backend::Legacy, Reason::Rules)
    );
    assert_eq!(
        detected(&both(TWO_RULES, ONE_RULE), None),
        (Backend::Nft, Reason::Rules)
    );
}

#[test]
fn without_rules_the_default_is_taken_and_a_setting_beats_all() {
    assert_eq!(
        detected(&both("", ""), None),
        (Backend::Nft, Reason::Default)
    );
    let legacy = both("", "").with("iptables", "--version", 0, "iptables v1.8.9 (legacy)\n", "");
    assert_eq!(detected(&legacy, None), (Backend::Legacy, Reason::Default));
    assert_eq!(
        detected(&both(HINT, ""), Some(Backend::Legacy)),
        (Backend::Legacy, Reason::Configured)
    );
}

#[test]
fn a_backend_that_the_kernel_lacks_is_not_taken() {
    let no_nft = "Failed to initialize nft: Protocol not supported";
    let mut machine = both("", "");
    for program in ["iptables-nft-save", "ip6tables-nft-save"] {
        for arg in ["", "-t"] {
            machine = machine.with(program, arg, 1, "", no_nft);
        }
    }
    assert_eq!(detected(&machine, None), (Backend::Legacy, Reason::OnlyOne));
}

#[test]
fn plain_programs_do_where_there_are_no_variants() {
    let machine = Machine::default()
        .with("iptables", "--version", 0, "iptables v1.6.2\n", "")
        .with(
            "iptables-restore",
            "--version",
            0,
            "iptables-restore v1.6.2\n",
            "",
        );
    let backends = Backends::detect(&machine, None).unwrap();
    assert_eq!(backends.backend, Backend::Legacy);
    assert_eq!(backends.programs(IpFamily::V6).restore, "ip6tables-restore");
    let error = Backends::detect(&machine, Some(Backend::Nft)).unwrap_err();
    assert!(
        matches!(error, IptablesError::NotInstalled { .. }),
        "{error:?}"
    );
}

#[test]
fn variants_are_called_by_their_names() {
    let backends = Backends::detect(&both("", ""), None).unwrap();
    let programs = backends.programs(IpFamily::V6);
    assert_eq!(programs.save, "ip6tables-nft-save");
    assert_eq!(
        backends.programs(IpFamily::V4).restore,
        "iptables-nft-restore"
    );
}

#[test]
fn an_iptables_that_is_too_old_or_missing_is_refused_clearly() {
    let machine = Machine::default()
        .with("iptables", "--version", 0, "iptables v1.6.1\n", "")
        .with(
            "iptables-restore",
            "--version",
            0,
            "iptables-restore v1.6.1\n",
            "",
        );
    assert_eq!(
        Backends::detect(&machine, None).unwrap_err().to_string(),
        "iptables-restore 1.6.1 is too old: 1.6.2 or newer is needed"
    );
    assert_eq!(
        Backends::detect(&Machine::default(), None)
            .unwrap_err()
            .to_string(),
        "iptables is not installed (looked for iptables, iptables-nft, iptables-legacy)"
    );
}

#[test]
fn versions_are_read_from_what_iptables_says() {
    for (text, version) in [
        ("iptables v1.8.9 (nf_tables)", Ok(Version(1, 8, 9))),
        ("iptables-restore v1.4.21", Ok(Version(1, 4, 21))),
        ("iptables v1.8.10 (legacy)", Ok(Version(1, 8, 10))),
        ("iptables v2.0", Ok(Version(2, 0, 0))),
        ("no version", Err(())),
    ] {
        assert_eq!(text.parse(), version, "{text}");
    }
}

fn iptables(machine: Machine) -> (Arc<Machine>, Iptables) {
    let machine = Arc::new(machine);
    let programs = Programs {
        family: IpFamily::V4,
        backend: Backend::Nft,
        save: "iptables-nft-save".into(),
        restore: "iptables-nft-restore".into(),
    };
    let exec: Arc<dyn Exec> = Arc::<Machine>::clone(&machine);
    (machine, Iptables::new(exec, programs))
}

#[test]
fn only_the_tables_asked_for_are_returned() {
    let text = "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";
    let (machine, iptables) = iptables(
        Machine::default()
            .with("iptables-nft-save", "", 0, text, "")
            .with(
                "iptables-nft-save",
                "-t",
                0,
                "*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n",
                "",
            ),
    );
    let all = iptables.save(&Table::ALL).unwrap();
    assert_eq!(all.chains.len(), 2);
    let nat = iptables.save(&[Table::Nat]).unwrap();
    assert_eq!(nat.chains.len(), 1);
    assert_eq!(
        *machine.runs.lock().unwrap(),
        ["iptables-nft-save ", "iptables-nft-save -t nat"]
    );
}

#[test]
fn rules_that_cannot_be_read_are_an_error_not_an_empty_list() {
    let of = |status, stdout, stderr| {
        let machine = Machine::default().with("iptables-nft-save", "", status, stdout, stderr);
        iptables(machine)
            .1
            .save(&[Table::Nat, Table::Filter])
            .unwrap_err()
    };
    let error = of(
        4,
        "",
        "Could not fetch rule set generation id: Permission denied",
    );
    assert!(
        matches!(
            error,
            IptablesError::Save {
                status: Some(4),
                ..
            }
        ),
        "{error:?}"
    );
    let error = of(0, "*nat\n:OUTPUT ACCEPT", "");
    assert!(matches!(error, IptablesError::Parse { .. }), "{error:?}");
}

#[test]
fn nothing_to_edit_starts_no_program() {
    let (machine, iptables) = iptables(Machine::default());
    iptables.restore(&[]).unwrap();
    assert_eq!(machine.started(), 0);
}

#[test]
fn a_refused_batch_names_the_rule() {
    let machine = Machine::default().with(
        "iptables-nft-restore",
        "-w",
        2,
        "",
        "iptables-nft-restore v1.8.9 (nf_tables): Set NOSET doesn't exist.\n\nError occurred at line: 3\n",
    );
    let (machine, iptables) = iptables(machine);
    let edits = [Edit::Replace {
        table: Table::Nat,
        chain: ChainName::new("KUBE-SERVICES").unwrap(),
        rules: vec![Rule::new("-m set --match-set NOSET dst,dst -j RETURN")],
    }];
    let error = iptables.restore(&edits).unwrap_err();
    assert_eq!(error.failure_kind(), FailureKind::Other);
    let IptablesError::Restore { source, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(
        source.to_string(),
        "set NOSET does not exist at \"-A KUBE-SERVICES -m set --match-set NOSET dst,dst -j RETURN\" of table nat"
    );
    assert_eq!(
        *machine.runs.lock().unwrap(),
        ["iptables-nft-restore -w 5 --noflush"]
    );
}

/// Messages of iptables 1.8.9 about the same batch.
#[test]
fn failures_of_both_backends_are_classified_and_located() {
    use RestoreFailureKind::*;
    let batch = [Edit::Replace {
        table: Table::Nat,
        chain: ChainName::new("KX").unwrap(),
        rules: vec![Rule::new("-j NOPE")],
    }];
    assert_eq!(
        render_edits(&batch),
        "*nat\n:KX - [0:0]\n-A KX -j NOPE\nCOMMIT\n"
    );
    for (stderr, kind, line) in [
        (
            "iptables-restore v1.8.9 (legacy): Couldn't load target `NOPE':No such file or directory\n\nError occurred at line: 3\n",
            UnknownTarget("NOPE".into()),
            Some("-A KX -j NOPE"),
        ),
        (
            "iptables-nft-restore v1.8.9 (nf_tables): Chain 'NOPE' does not exist\nError occurred at line: 4\n",
            UnknownTarget("NOPE".into()),
            Some("COMMIT"),
        ),
        (
            "iptables-restore v1.8.9 (legacy): Couldn't load match `nomatch':No such file or directory\n\nError occurred at line: 3\n",
            UnknownMatch("nomatch".into()),
            Some("-A KX -j NOPE"),
        ),
        ("iptables-restore: line 4 failed", Other, Some("COMMIT")),
        (
            "iptables-nft-restore: line 3 failed: Bad rule (does a matching rule exist in that chain?).",
            NotFound,
            Some("-A KX -j NOPE"),
        ),
        (
            "iptables-nft-restore v1.8.9 (nf_tables): \nline 3: CHAIN_DEL failed (Device or resource busy): chain KX",
            Busy,
            Some("-A KX -j NOPE"),
        ),
        (
            "Warning: Extension ipvs revision 0 not supported, missing kernel module?\niptables-nft-restore v1.8.9 (nf_tables): \nline 3: RULE_APPEND failed (No such file or directory): rule in chain KX",
            UnknownMatch("ipvs".into()),
            Some("-A KX -j NOPE"),
        ),
        (
            "Can't lock /run/xtables.lock: Resource temporarily unavailable\nAnother app is currently holding the xtables lock. Stopped waiting after 1s.",
            LockHeld,
            None,
        ),
        (
            "Fatal: can't open lock file /run/xtables.lock: Permission denied",
            Permission,
            None,
        ),
        (
            "iptables-nft-restore v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)",
            Permission,
            None,
        ),
        ("iptables-restore: COMMIT expected at line 9", Other, None),
    ] {
        let failure = RestoreFailure::of(&batch, Some(1), stderr);
        assert_eq!(failure.kind, kind, "{stderr}");
        assert_eq!(
            failure.location.map(|at| at.text).as_deref(),
            line,
            "{stderr}"
        );
    }
}

#[test]
fn a_batch_that_a_signal_killed_is_transient() {
    let source = Box::new(RestoreFailure::of(&[], None, ""));
    assert_eq!(source.to_string(), "killed by a signal");
    let error = IptablesError::Restore {
        program: "iptables-restore".into(),
        source,
    };
    assert_eq!(error.failure_kind(), FailureKind::Transient);
}

#[test]
fn a_rule_is_supported_only_without_a_warning() {
    let rule = Rule::new("-m bpf --bytecode \"1,6 0 0 0\"");
    let warning = "Warning: Extension bpf revision 0 not supported, missing kernel module?\n";
    for (status, stderr, known) in [(0, "", true), (0, warning, false), (2, "", false)] {
        let machine = Machine::default().with("iptables-nft-restore", "-w", status, "", stderr);
        let (_, iptables) = iptables(machine);
        assert_eq!(
            iptables.knows(Table::Nat, &rule).unwrap(),
            known,
            "{stderr}"
        );
    }
}

#[test]
fn a_probe_that_was_not_made_is_no_answer() {
    let rule = Rule::new("-m bpf");
    let held = "Another app is currently holding the xtables lock; still 1s 0us time ahead";
    for (status, stderr) in [(Some(4), held), (None, "")] {
        let machine = Machine::default().with("iptables-nft-restore", "-w", status, "", stderr);
        let (_, iptables) = iptables(machine);
        let answer = iptables.knows(Table::Nat, &rule);
        assert!(
            matches!(answer, Err(IptablesError::Restore { .. })),
            "{stderr}: {answer:?}"
        );
    }
}

#[test]
fn a_large_batch_goes_out_in_pieces_of_whole_lines() {
    let edits: Vec<Edit> = (0..2_000)
        .map(|number| Edit::Replace {
            table: Table::Nat,
            chain: ChainName::new(format!("KUBE-SVC-{number}")).unwrap(),
            rules: vec![Rule::new("-j RETURN ".repeat(number % 9)); number % 7],
        })
        .collect();
    let pieces: Vec<Vec<u8>> = restore::pieces(&edits).collect();
    assert_eq!(
        String::from_utf8(pieces.concat()).unwrap(),
        render_edits(&edits)
    );
    assert!(pieces.len() > 3, "{}", pieces.len());
    assert!(pieces.iter().all(|piece| piece.ends_with(b"\n")));
}
