// SPDX-License-Identifier: Apache-2.0
//! Another program has rules of nft's own in a table of iptables, which iptables then cannot list:
//! the fixed rules of IPVS mode are written, repaired and taken over all the same.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};

use super::Lab;
use super::neighbours::state;
use kpr_testkit::cases::At;
use kpr_testkit::manifests::Service;
use kpr_testkit::oracle;
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::{Outcome, Patience, Protocol, ask};
use kpr_testkit::wait;

const IN_IPTABLES: &str = "--ipvs-rules=iptables";
/// What others change is noticed, not found by chance.
const RARE: &str = "--ipvs-sync-period=1h";

/// As Tailscale and Calico have them: in a chain of its own, and in one of the kernel's.
const NATIVE: [&str; 3] = [
    "add chain ip nat ts-postrouting",
    "add rule ip nat ts-postrouting numgen random mod 2 0 counter masquerade",
    "insert rule ip nat POSTROUTING numgen random mod 2 0 counter jump ts-postrouting",
];

/// The jumps of ours in `nat`, and the chains that they lead to.
const JUMPS: [(&str, &str); 3] = [
    ("OUTPUT", "KUBE-SERVICES"),
    ("PREROUTING", "KUBE-SERVICES"),
    ("POSTROUTING", "KUBE-POSTROUTING"),
];

impl Lab {
    fn nft(&self, words: &str) -> Result<String> {
        let words: Vec<&str> = words.split(' ').collect();
        self.node().run("nft", &words)
    }

    fn is_hidden(&self, wanted: bool) -> Result<()> {
        let text = self.node().run("iptables-nft-save", &["-t", "nat"])?;
        ensure!(text.contains("is incompatible") == wanted, "{text}");
        Ok(())
    }

    /// The other program comes.
    fn hide(&self) -> Result<()> {
        for command in NATIVE {
            self.nft(command)?;
        }
        self.is_hidden(true)
    }

    /// It goes.
    fn reveal(&self) -> Result<()> {
        for handle in self.handles("POSTROUTING", "jump ts-postrouting")? {
            self.nft(&format!("delete rule ip nat POSTROUTING handle {handle}"))?;
        }
        self.nft("flush chain ip nat ts-postrouting")?;
        self.nft("delete chain ip nat ts-postrouting")?;
        self.is_hidden(false)
    }

    /// The handles of rules of a chain that contain a text.
    fn handles(&self, chain: &str, text: &str) -> Result<Vec<String>> {
        let listed = self.nft(&format!("-a list chain ip nat {chain}"))?;
        // Not the lines of table and chain.
        let rules = listed
            .lines()
            .filter(|line| line.contains(text) && !line.contains("{ # handle "));
        let handle = |line: &str| Some(line.rsplit_once("# handle ")?.1.trim().to_owned());
        Ok(rules.filter_map(handle).collect())
    }

    /// Waits for so many rules with a text in a chain of `nat`.
    fn has(&self, chain: &str, text: &str, count: usize) -> Result<()> {
        wait::until(&format!("{chain} has {text:?} {count} times"), || {
            let found = self.handles(chain, text)?.len();
            ensure!(count == found, "it has it {found} times");
            Ok(())
        })
    }

    /// All rules of IPv4, without the order of chains, which is that of their making.
    fn sorted_rules(&self) -> Result<Vec<String>> {
        let mut rules = oracle::rules(self.node(), Family::V4)?;
        rules.sort();
        Ok(rules)
    }

    /// Clients get answers over each family.
    fn serves(&self, services: &[Service], when: &str) -> Result<()> {
        wait::until(&format!("it serves {when}"), || {
            for service in services {
                for family in Family::ALL {
                    for (from, at) in [
                        (Host::Shell, At::ClusterIp),
                        (Host::Node, At::ClusterIp),
                        (Host::Client, At::NodePort),
                        (Host::Client, At::Vip),
                    ] {
                        let to = at.address(service, family, 80);
                        let host = self.topology.host(from);
                        let outcome = ask(host, None, to, Protocol::Tcp, Patience::Short)?;
                        let is_right = matches!(outcome, Outcome::Answered(_));
                        ensure!(is_right, "{from} to {to}: {outcome}");
                    }
                }
            }
            Ok(())
        })
    }

    /// What others do to chains and jumps of ours is repaired.
    fn is_repaired(&self) -> Result<()> {
        self.nft("flush chain ip nat KUBE-MARK-MASQ")?;
        self.has("KUBE-MARK-MASQ", "", 1)?;
        for (chain, target) in JUMPS {
            let jump = format!("jump {target}");
            for handle in self.handles(chain, &jump)? {
                self.nft(&format!("delete rule ip nat {chain} handle {handle}"))?;
            }
            self.has(chain, &jump, 1)?;
        }
        wait::until("the state names the table", || {
            let shown = state(self.node(), "?limit=1")?;
            let of = |family: &str| shown["families"][family]["unreadTables"].clone();
            ensure!(of("IPv4")[0] == "nat" && of("IPv6").is_null(), "{shown}");
            Ok(())
        })
    }
}

/// They come while the proxy runs, are there when the next one starts, and go again.
pub(super) fn beside_ours(binary: &Path) -> Result<()> {
    let web = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let late = Service::new("late", 2, &[Host::Web1, Host::Web3]).exposed();
    let lab = Lab::new(binary, std::slice::from_ref(&web), &[IN_IPTABLES, RARE])?;
    let proxy = lab.start()?;
    lab.settles_at(std::slice::from_ref(&web), "rr")?;
    let wanted = lab.sorted_rules()?;
    lab.hide()?;
    lab.is_repaired()?;
    let warned = "table has nft rules that iptables cannot list";
    proxy.wait_for_log(&["WARN", "IPv4", "nat", warned])?;
    ensure!(proxy.log().matches(warned).count() == 1, "{}", proxy.log());
    lab.manifests.apply(&late)?;
    let services = [web, late];
    lab.serves(&services, "beside the rules of others")?;

    proxy.terminate()?;
    // Written while nobody can read it.
    lab.nft("flush chain ip nat KUBE-SERVICES")?;
    let proxy = lab.start()?;
    lab.serves(&services, "after a restart")?;
    for (chain, target) in JUMPS {
        lab.has(chain, &format!("jump {target}"), 1)?;
    }
    lab.is_repaired()?;
    lab.reveal()?;
    let found = lab.sorted_rules()?;
    let [lost, more] = [(&wanted, &found), (&found, &wanted)].map(|(these, those)| {
        let those: BTreeSet<_> = those.iter().collect();
        let others = these.iter().filter(|rule| !those.contains(rule));
        others.cloned().collect::<Vec<_>>()
    });
    ensure!(
        found == wanted,
        "lost {lost:#?}, more {more:#?}\n{}",
        proxy.log()
    );
    lab.settles_at(&services, "rr")
}
