// SPDX-License-Identifier: Apache-2.0
//! iptables rules of one or both backends, read back with `iptables-save`.

use std::sync::Arc;

use kpr_core::model::net::IpFamily;
use kpr_core::model::node::LocalDetector;
use kpr_core::plan::FailureKind;
use kpr_core::plan::context::Context;
use kpr_core::plan::ipvs::set::SetId;
use kpr_core::plan::ipvs::static_rules::{FixedRules, edits, fixed_rules};
use kpr_core::plan::ruleset::{ChainName, Edit, Rule, Ruleset, Table};
use kpr_core::plan::testing;
use kube_proxy_rs::clock::Clock;
use kube_proxy_rs::dataplane::exec::{Exec, System};
use kube_proxy_rs::dataplane::failure::Failed as _;
use kube_proxy_rs::dataplane::iptables::{
    Backend, Backends, Iptables, IptablesError, Reason, RestoreFailureKind,
};

use kpr_testkit::isolated::{Need, Test, run};

pub(crate) const LEGACY: &[Test] = &[
    (
        "rules_are_saved_as_they_were_written_legacy",
        NEEDS_LEGACY,
        || written(Backend::Legacy),
    ),
    (
        "edits_leave_foreign_rules_alone_legacy",
        NEEDS_LEGACY,
        || foreign(Backend::Legacy),
    ),
    ("what_was_made_can_be_removed_legacy", NEEDS_LEGACY, || {
        removed(Backend::Legacy);
    }),
    ("a_refused_rule_is_named_legacy", NEEDS_LEGACY, || {
        refused(Backend::Legacy);
    }),
    ("a_lock_that_is_held_is_said_so", NEEDS_LEGACY, lock_is_held),
];

pub(crate) const NFT: &[Test] = &[
    (
        "rules_are_saved_as_they_were_written_nft",
        NEEDS_NFT,
        || written(Backend::Nft),
    ),
    ("edits_leave_foreign_rules_alone_nft", NEEDS_NFT, || {
        foreign(Backend::Nft);
    }),
    ("what_was_made_can_be_removed_nft", NEEDS_NFT, || {
        removed(Backend::Nft);
    }),
    ("a_refused_rule_is_named_nft", NEEDS_NFT, || {
        refused(Backend::Nft);
    }),
    (
        "tables_that_only_nft_can_read_are_an_error",
        NEEDS_NFT,
        incompatible,
    ),
];

pub(crate) const BOTH: &[Test] = &[
    (
        "the_backend_of_kubelet_is_found",
        NEEDS_BOTH,
        kubelets_backend,
    ),
    (
        "the_backend_with_rules_is_found",
        NEEDS_BOTH,
        backend_with_rules,
    ),
];

const NEEDS_LEGACY: &[Need] = &[Need::Namespaces, Need::Legacy, Need::Ipset];
const NEEDS_NFT: &[Need] = &[Need::Namespaces, Need::Nft, Need::Ipset];
const NEEDS_BOTH: &[Need] = &[Need::Namespaces, Need::Nft, Need::Legacy];

const TABLES: [Table; 4] = [Table::Mangle, Table::Nat, Table::Filter, Table::Security];

fn chain(name: &str) -> ChainName {
    ChainName::new(name).unwrap()
}

fn system() -> Arc<dyn Exec> {
    Arc::new(System::new(Clock::system(), System::DEFAULT_DEADLINE))
}

fn iptables(backend: Backend, family: IpFamily) -> Iptables {
    let exec = system();
    let backends = Backends::detect(exec.as_ref(), Some(backend)).unwrap();
    Iptables::new(exec, backends.programs(family))
}

fn context(family: IpFamily, masquerade_all: bool, local_detector: LocalDetector) -> Context {
    Context {
        masquerade_all,
        local_detector,
        ..testing::context(family)
    }
}

/// The planner's rules for each way to detect local traffic.
fn all_fixed_rules(family: IpFamily) -> Vec<FixedRules> {
    let pods = match family {
        IpFamily::V4 => "10.244.0.0/16",
        IpFamily::V6 => "fd00:244::/64",
    };
    let interface = || "cni0".parse().unwrap();
    [
        context(family, true, LocalDetector::None),
        context(family, false, LocalDetector::None),
        context(family, false, LocalDetector::Cidr(pods.parse().unwrap())),
        context(family, false, LocalDetector::BridgeInterface(interface())),
        context(family, false, LocalDetector::InterfacePrefix(interface())),
    ]
    .iter()
    .map(|context| fixed_rules(context).unwrap())
    .collect()
}

/// Creates the sets that the rules refer to.
fn make_sets(family: IpFamily) {
    for set in SetId::ALL {
        let name = set.name(family);
        let mut arguments = vec!["create", name.as_str()];
        // Type and its options.
        let mut words = set.set_type().as_str().split(' ');
        arguments.extend(words.next());
        arguments.extend(match (set.set_type().is_hash(), family) {
            (false, _) => ["range", "0-65535"],
            (true, IpFamily::V4) => ["family", "inet"],
            (true, IpFamily::V6) => ["family", "inet6"],
        });
        arguments.extend(words);
        run("ipset", &arguments);
    }
}

/// Chains whose names start with `KUBE-`.
fn ours(mut ruleset: Ruleset) -> Ruleset {
    ruleset
        .chains
        .retain(|(_, chain), _| chain.as_str().starts_with("KUBE-"));
    ruleset
}

/// `iptables-save` prints the planner's rules character for character; otherwise the planner would
/// rewrite them forever.
fn written(backend: Backend) {
    for family in IpFamily::ALL {
        make_sets(family);
        let iptables = iptables(backend, family);
        for wanted in all_fixed_rules(family) {
            let present = iptables.save(&TABLES).unwrap();
            let needed = edits(&wanted, &present);
            assert!(!needed.is_empty());
            iptables.restore(&needed).unwrap();
            let present = iptables.save(&TABLES).unwrap();
            assert_eq!(ours(present.clone()), wanted.chains, "{family}");
            assert_eq!(edits(&wanted, &present), [], "{family}");
        }
        let nat = iptables.save(&[Table::Nat]).unwrap();
        assert!(nat.chains.keys().all(|(table, _)| *table == Table::Nat));
        assert!(nat.rules(Table::Nat, &chain("PREROUTING")).is_some());
    }
}

fn foreign(backend: Backend) {
    let iptables = iptables(backend, IpFamily::V4);
    let program = format!("iptables-{backend}");
    run(
        &program,
        &["-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "ACCEPT"],
    );
    run(&program, &["-P", "FORWARD", "DROP"]);
    let jump =
        Rule::new("-m comment --comment \"kubernetes ipvs access filter\" -j KUBE-IPVS-FILTER");
    let edits = [
        Edit::Replace {
            table: Table::Filter,
            chain: chain("KUBE-IPVS-FILTER"),
            rules: vec![],
        },
        Edit::Prepend {
            table: Table::Filter,
            chain: chain("INPUT"),
            rule: jump.clone(),
        },
        Edit::Append {
            table: Table::Filter,
            chain: chain("KUBE-IPVS-FILTER"),
            rule: Rule::new(""),
        },
    ];
    iptables.restore(&edits).unwrap();
    let saved = iptables.save(&[Table::Filter]).unwrap();
    assert_eq!(
        saved.rules(Table::Filter, &chain("INPUT")).unwrap(),
        [
            jump.clone(),
            Rule::new("-p tcp -m tcp --dport 22 -j ACCEPT")
        ]
    );
    assert_eq!(
        saved
            .rules(Table::Filter, &chain("KUBE-IPVS-FILTER"))
            .unwrap(),
        [Rule::new("")]
    );
    assert!(
        run(&format!("{program}-save"), &[]).contains(":FORWARD DROP "),
        "the policy stays"
    );
    let delete = Edit::Delete {
        table: Table::Filter,
        chain: chain("INPUT"),
        rule: jump,
    };
    iptables.restore(&[delete]).unwrap();
    let saved = iptables.save(&[Table::Filter]).unwrap();
    assert_eq!(
        saved.rules(Table::Filter, &chain("INPUT")).unwrap().len(),
        1
    );
}

fn removed(backend: Backend) {
    for family in IpFamily::ALL {
        make_sets(family);
        let iptables = iptables(backend, family);
        let before = iptables.save(&TABLES).unwrap();
        let wanted = all_fixed_rules(family).remove(0);
        iptables.restore(&edits(&wanted, &before)).unwrap();
        // Chains refer to each other; all are deleted in one batch.
        let jumps = wanted
            .jumps
            .into_iter()
            .map(|(table, chain, rule)| Edit::Delete { table, chain, rule });
        let chains = wanted
            .chains
            .chains
            .into_keys()
            .map(|(table, chain)| Edit::DeleteChain { table, chain });
        iptables
            .restore(&jumps.chain(chains).collect::<Vec<_>>())
            .unwrap();
        let after = iptables.save(&TABLES).unwrap();
        assert_eq!(ours(after.clone()), Ruleset::new());
        assert_eq!(after.rule_count(), 0);
    }
    // No rule refers to a set any longer.
    run("ipset", &["destroy"]);
}

fn refused(backend: Backend) {
    let iptables = iptables(backend, IpFamily::V4);
    let failure = |edit: Edit| {
        let error = iptables.restore(&[edit]).unwrap_err();
        assert_ne!(error.failure_kind(), FailureKind::Transient);
        match error {
            IptablesError::Restore { source, .. } => *source,
            other => panic!("{other:?}"),
        }
    };
    let with = |rules: &[&str]| Edit::Replace {
        table: Table::Nat,
        chain: chain("KUBE-SERVICES"),
        rules: rules.iter().copied().map(Rule::new).collect(),
    };
    let bad = "-m set --match-set NO-SUCH-SET dst,dst -j RETURN";
    let no_set = failure(with(&["-s 10.0.0.0/8 -j RETURN", bad]));
    assert_eq!(
        no_set.kind,
        RestoreFailureKind::MissingSet("NO-SUCH-SET".into())
    );
    let location = no_set.location.unwrap();
    assert_eq!(location.text, format!("-A KUBE-SERVICES {bad}"));
    assert_eq!(location.chain.as_deref(), Some("KUBE-SERVICES"));

    let no_match = failure(with(&["-m no-such-match -j RETURN"]));
    assert_eq!(
        no_match.kind,
        RestoreFailureKind::UnknownMatch("no-such-match".into())
    );
    let no_target = failure(with(&["-j NO-SUCH-TARGET"]));
    assert_eq!(
        no_target.kind,
        RestoreFailureKind::UnknownTarget("NO-SUCH-TARGET".into())
    );
    let no_rule = failure(Edit::Delete {
        table: Table::Nat,
        chain: chain("OUTPUT"),
        rule: Rule::new("-j ACCEPT"),
    });
    assert!(no_rule.location.is_some(), "{no_rule:?}");
    // A failed batch changes nothing in its table.
    assert_eq!(ours(iptables.save(&TABLES).unwrap()), Ruleset::new());
}

fn lock_is_held() {
    let iptables = iptables(Backend::Legacy, IpFamily::V4);
    let path = std::env::var_os("XTABLES_LOCKFILE").unwrap();
    let lock = std::fs::File::create(path).unwrap();
    lock.lock().unwrap();
    let edit = Edit::Replace {
        table: Table::Nat,
        chain: chain("KUBE-SERVICES"),
        rules: vec![],
    };
    let error = iptables.restore(std::slice::from_ref(&edit)).unwrap_err();
    assert_eq!(error.failure_kind(), FailureKind::Transient, "{error:?}");
    lock.unlock().unwrap();
    iptables.restore(&[edit]).unwrap();
}

fn incompatible() {
    let iptables = iptables(Backend::Nft, IpFamily::V4);
    run("iptables-nft", &["-A", "INPUT", "-j", "ACCEPT"]);
    run("iptables-nft", &["-t", "nat", "-N", "KUBE-SERVICES"]);
    let words = "add rule ip filter INPUT numgen random mod 2 0 drop";
    run("nft", &words.split(' ').collect::<Vec<_>>());
    let saved = iptables.save(&TABLES).unwrap();
    assert_eq!(
        saved.unread.into_keys().collect::<Vec<_>>(),
        [Table::Filter]
    );
    assert!(
        saved
            .chains
            .keys()
            .all(|(table, _)| *table != Table::Filter)
    );
    assert_eq!(ours(iptables.save(&[Table::Nat]).unwrap()).chains.len(), 1);
}

fn kubelets_backend() {
    let exec = system();
    run("iptables-legacy", &["-A", "INPUT", "-j", "ACCEPT"]);
    run(
        "ip6tables-nft",
        &["-t", "mangle", "-N", "KUBE-IPTABLES-HINT"],
    );
    let found = Backends::detect(exec.as_ref(), None).unwrap();
    assert_eq!((found.backend, found.reason), (Backend::Nft, Reason::Hint));
    assert_eq!(
        found.programs(IpFamily::V6).restore,
        "ip6tables-nft-restore"
    );
    run(
        "ip6tables-nft",
        &["-t", "mangle", "-X", "KUBE-IPTABLES-HINT"],
    );
    run(
        "iptables-legacy",
        &["-t", "mangle", "-N", "KUBE-KUBELET-CANARY"],
    );
    let found = Backends::detect(exec.as_ref(), None).unwrap();
    assert_eq!(
        (found.backend, found.reason),
        (Backend::Legacy, Reason::Hint)
    );
}

fn backend_with_rules() {
    let exec = system();
    let found = Backends::detect(exec.as_ref(), None).unwrap();
    assert_eq!(found.reason, Reason::Default);
    run("iptables-legacy", &["-A", "INPUT", "-j", "ACCEPT"]);
    let found = Backends::detect(exec.as_ref(), None).unwrap();
    assert_eq!(
        (found.backend, found.reason),
        (Backend::Legacy, Reason::Rules)
    );
    run("iptables-nft", &["-A", "INPUT", "-j", "ACCEPT"]);
    run("ip6tables-nft", &["-A", "INPUT", "-j", "ACCEPT"]);
    let found = Backends::detect(exec.as_ref(), None).unwrap();
    assert_eq!((found.backend, found.reason), (Backend::Nft, Reason::Rules));
}
