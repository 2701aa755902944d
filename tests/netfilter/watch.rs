// SPDX-License-Identifier: Apache-2.0
//! Foreign changes to our rules are detected without reading the rules; our own changes are not
//! reported.

use std::sync::Arc;

use anyhow::ensure;
use kpr_core::model::IpFamily;
use kpr_core::plan::ruleset::{ChainId, ChainName, Edit, Rule, RuleBatch, Table};
use kube_proxy_rs::clock::Clock;
use kube_proxy_rs::dataplane::exec::{Exec, System};
use kube_proxy_rs::dataplane::iptables::{Backend, Backends, Iptables, Watch};

use kpr_testkit::isolated::{Need, Test, run};
use kpr_testkit::wait;

pub(crate) const LEGACY: &[Test] = &[
    (
        "changes_by_others_are_noticed_legacy",
        &[Need::Namespaces, Need::Legacy],
        || noticed(Backend::Legacy),
    ),
    (
        "packet_counters_are_no_change_legacy",
        &[Need::Namespaces, Need::Legacy],
        || counters(Backend::Legacy),
    ),
];

pub(crate) const NFT: &[Test] = &[
    (
        "changes_by_others_are_noticed_nft",
        &[Need::Namespaces, Need::Nft],
        || noticed(Backend::Nft),
    ),
    (
        "packet_counters_are_no_change_nft",
        &[Need::Namespaces, Need::Nft],
        || counters(Backend::Nft),
    ),
    (
        "changes_beside_ours_are_no_news_nft",
        &[Need::Namespaces, Need::Nft],
        beside_ours,
    ),
];

fn chain(name: &str) -> ChainName {
    ChainName::new(name).unwrap()
}

fn replace(table: Table, name: &str, rules: &[&str]) -> Edit {
    Edit::Replace {
        table,
        chain: chain(name),
        rules: rules.iter().map(|rule| Rule::new(*rule)).collect(),
    }
}

/// Our rules in two tables.
fn ours() -> Vec<Edit> {
    vec![
        replace(Table::Nat, "KUBE-SERVICES", &["-p tcp -j RETURN"]),
        replace(Table::Nat, "KUBE-OTHER", &["-p tcp -j RETURN"]),
        replace(Table::Filter, "KUBE-FORWARD", &["-p tcp -j ACCEPT"]),
        Edit::Prepend {
            table: Table::Nat,
            chain: chain("OUTPUT"),
            rule: Rule::new("-j KUBE-SERVICES"),
        },
    ]
}

struct Machine {
    backend: Backend,
    family: IpFamily,
    iptables: Iptables,
    watch: Watch,
}

impl Machine {
    /// A family whose rules have been written and observed.
    fn new(backend: Backend, family: IpFamily) -> Self {
        let exec: Arc<dyn Exec> = Arc::new(System::new(Clock::system(), System::DEFAULT_DEADLINE));
        let backends = Backends::detect(&*exec, Some(backend)).unwrap();
        let iptables = Iptables::new(exec, backends.programs(family));
        let mut machine = Self {
            backend,
            family,
            iptables,
            watch: Watch::open(backend, IpFamily::ALL.into_iter()),
        };
        machine.look();
        machine.write(&ours());
        assert!(!machine.changed(), "a write of our own is no news");
        machine
    }

    fn look(&mut self) {
        self.watch.before_look(self.family);
    }

    fn changed(&mut self) -> bool {
        self.watch.has_changed(self.family)
    }

    fn write(&mut self, edits: &[Edit]) {
        self.write_and(edits, None);
    }

    /// Another program runs iptables after our write, before the result is observed.
    fn write_and(&mut self, edits: &[Edit], other: Option<&str>) {
        // The planner knows the rules in the kernel.
        let rules = self.iptables.save(&[Table::Nat, Table::Filter]).unwrap();
        let before = |id: &ChainId| rules.chains.get(id).map(Vec::len);
        let edits = RuleBatch::growing(self.family, edits.to_vec(), before);
        let mut watch = std::mem::replace(
            &mut self.watch,
            Watch::open(self.backend, std::iter::empty()),
        );
        let written = watch.around_write(&edits, || {
            let result = self.iptables.restore(&edits.edits);
            if let Some(arguments) = other {
                self.other(arguments);
            }
            result
        });
        self.watch = watch;
        written.unwrap();
    }

    /// Another program runs iptables.
    fn other(&self, arguments: &str) {
        let program = match self.family {
            IpFamily::V4 => format!("iptables-{}", self.backend),
            IpFamily::V6 => format!("ip6tables-{}", self.backend),
        };
        let arguments: Vec<&str> = arguments.split(' ').collect();
        run(&program, &arguments);
    }
}

fn noticed(backend: Backend) {
    for family in IpFamily::ALL {
        let mut machine = Machine::new(backend, family);
        for change in [
            // One rule, replaced by one of the same size.
            "-t nat -R KUBE-SERVICES 1 -p udp -j RETURN",
            "-t nat -D OUTPUT -j KUBE-SERVICES",
            "-t nat -A KUBE-SERVICES -j RETURN",
            "-t nat -F KUBE-OTHER",
            "-t nat -X KUBE-OTHER",
            "-t filter -F",
            "-t nat -F",
        ] {
            machine.other(change);
            // The content of legacy tables is read every few seconds only.
            wait::until(&format!("{family} {change}"), || {
                ensure!(machine.changed(), "it is not noticed");
                Ok(())
            })
            .unwrap();
            assert!(
                machine.changed(),
                "{family} {change}: until it is looked at"
            );
            machine.look();
            assert!(!machine.changed(), "{family} {change}: looked at");
        }
        machine.write(&ours()[..3]);
        assert!(!machine.changed(), "{family}: written again");
        // A foreign change before or after our write is not taken for ours.
        machine.other("-t nat -F KUBE-SERVICES");
        machine.write(&[replace(Table::Nat, "KUBE-OTHER", &["-p udp -j RETURN"])]);
        assert!(machine.changed(), "{family}: before a write");
        machine.look();
        machine.write(&[replace(Table::Nat, "KUBE-OTHER", &["-p tcp -j RETURN"])]);
        machine.other("-t nat -X KUBE-SERVICES");
        assert!(machine.changed(), "{family}: after a write");
        // Nor is one right after it, by a program that waited for the lock.
        machine.look();
        machine.write(&ours()[..3]);
        assert!(!machine.changed(), "{family}: written again");
        for change in [
            "-t nat -F KUBE-SERVICES",
            "-t filter -F KUBE-FORWARD",
            "-t nat -F",
        ] {
            machine.write_and(&[replace(Table::Nat, "KUBE-OTHER", &[])], Some(change));
            assert!(machine.changed(), "{family} {change}: during a write");
            machine.look();
            machine.write(&ours());
            assert!(!machine.changed(), "{family} {change}: written again");
        }
        // No kind of change by our own write is reported.
        machine.write(&[
            replace(Table::Nat, "KUBE-NEW", &["-p tcp -j RETURN", "-j RETURN"]),
            replace(Table::Nat, "KUBE-SERVICES", &["-j KUBE-NEW"]),
            Edit::DeleteChain {
                table: Table::Nat,
                chain: chain("KUBE-OTHER"),
            },
            Edit::Delete {
                table: Table::Nat,
                chain: chain("OUTPUT"),
                rule: Rule::new("-j KUBE-SERVICES"),
            },
            Edit::Append {
                table: Table::Filter,
                chain: chain("INPUT"),
                rule: Rule::new("-j KUBE-FORWARD"),
            },
        ]);
        assert!(!machine.changed(), "{family}: all kinds of edits");
    }
}

fn counters(backend: Backend) {
    run("ip", &["link", "set", "lo", "up"]);
    for family in IpFamily::ALL {
        let mut machine = Machine::new(backend, family);
        let (address, icmp) = match family {
            IpFamily::V4 => ("127.0.0.1", "icmp"),
            IpFamily::V6 => ("::1", "ipv6-icmp"),
        };
        machine.other(&format!("-t filter -I KUBE-FORWARD -p {icmp} -j RETURN"));
        machine.other("-t filter -I INPUT -j KUBE-FORWARD");
        machine.look();
        run("ping", &["-c", "1", "-W", "5", address]);
        let program = match family {
            IpFamily::V4 => format!("iptables-{backend}"),
            IpFamily::V6 => format!("ip6tables-{backend}"),
        };
        let listed = run(
            &program,
            &["-t", "filter", "-v", "-x", "-n", "-L", "KUBE-FORWARD"],
        );
        let counted = listed
            .lines()
            .any(|line| line.contains("RETURN") && !line.trim_start().starts_with("0 "));
        assert!(counted, "{listed}");
        assert!(!machine.changed(), "{family}");
    }
}

/// Frequent foreign nft changes cost us nothing.
fn beside_ours() {
    let mut machine = Machine::new(Backend::Nft, IpFamily::V4);
    machine.other("-t nat -N DOCKER");
    machine.other("-t nat -A DOCKER -j RETURN");
    machine.other("-t nat -I POSTROUTING -j DOCKER");
    machine.other("-t nat -D POSTROUTING -j DOCKER");
    run("nft", &["add", "table", "inet", "other"]);
    run("nft", &["delete", "table", "inet", "other"]);
    run("ip6tables-nft", &["-t", "nat", "-N", "KUBE-SERVICES"]);
    assert!(!machine.changed());
    // It may stand before our jump.
    machine.other("-t nat -I OUTPUT -j DOCKER");
    assert!(machine.changed());
    let removed = run("nft", &["flush", "ruleset"]);
    assert_eq!(removed, "");
    assert!(machine.changed());
}
