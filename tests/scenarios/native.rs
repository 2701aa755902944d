// SPDX-License-Identifier: Apache-2.0
//! Another program has rules of nft's own in a table of iptables, which iptables then cannot list:
//! the fixed rules of IPVS mode are written, repaired and taken over all the same.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::Lab;
use kpr_testkit::manifests::Service;
use kpr_testkit::native::{Table, reload};
use kpr_testkit::oracle;
use kpr_testkit::packets::answers;
use kpr_testkit::proxy::state;
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::Patience;
use kpr_testkit::wait;

const IN_IPTABLES: &str = "--ipvs-rules=iptables";
/// What others change is noticed, not found by chance.
const RARE: &str = "--ipvs-sync-period=1h";

/// The jumps of ours in `nat`, and the chains that they lead to.
const JUMPS: [(&str, &str); 3] = [
    ("OUTPUT", "KUBE-SERVICES"),
    ("PREROUTING", "KUBE-SERVICES"),
    ("POSTROUTING", "KUBE-POSTROUTING"),
];

impl Lab {
    fn nat(&self) -> Table<'_> {
        Table::nat(self.node(), Family::V4)
    }

    /// All rules of IPv4, without the order of chains, which is that of their making.
    fn sorted_rules(&self) -> Result<Vec<String>> {
        let mut rules = oracle::rules(self.node(), Family::V4)?;
        rules.sort();
        Ok(rules)
    }

    fn are_rules(&self, wanted: &[String]) -> Result<()> {
        let found = self.sorted_rules()?;
        let [lost, more] = [(wanted, &*found), (&*found, wanted)].map(|(these, those)| {
            let those: BTreeSet<_> = those.iter().collect();
            let others = these.iter().filter(|rule| !those.contains(rule));
            others.cloned().collect::<Vec<_>>()
        });
        ensure!(found == wanted, "lost {lost:#?}, more {more:#?}");
        Ok(())
    }

    /// Clients get answers over each family.
    fn serves(&self, services: &[Service], when: &str) -> Result<()> {
        wait::until(&format!("it serves {when}"), || {
            for service in services {
                answers(&self.topology, service, &Family::ALL, Patience::Short)?;
            }
            Ok(())
        })
    }

    /// What others do to chains and jumps of ours is repaired.
    fn is_repaired(&self) -> Result<()> {
        self.nat().nft("flush chain", "KUBE-MARK-MASQ")?;
        self.nat().has("KUBE-MARK-MASQ", "", 1..=1)?;
        for (chain, target) in JUMPS {
            let jump = format!("jump {target}");
            self.nat().delete(chain, &jump)?;
            self.nat().has(chain, &jump, 1..=1)?;
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
    lab.nat().hide()?;
    lab.is_repaired()?;
    let warned = "table has nft rules that iptables cannot list";
    proxy.wait_for_log(&["WARN", "IPv4", "nat", warned])?;
    ensure!(proxy.log().matches(warned).count() == 1, "{}", proxy.log());
    lab.manifests.apply(&late)?;
    let services = [web, late];
    lab.serves(&services, "beside the rules of others")?;

    proxy.terminate()?;
    // Written while nobody can read it.
    lab.nat().nft("flush chain", "KUBE-SERVICES")?;
    let proxy = lab.start()?;
    lab.serves(&services, "after a restart")?;
    for (chain, target) in JUMPS {
        lab.nat().has(chain, &format!("jump {target}"), 1..=1)?;
    }
    lab.is_repaired()?;
    lab.nat().reveal()?;
    lab.are_rules(&wanted).with_context(|| proxy.log())?;
    lab.settles_at(&services, "rr")
}

/// All rules become nft's own while it runs, and between two runs.
pub(super) fn reloaded(binary: &Path) -> Result<()> {
    let web = [Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed()];
    let lab = Lab::new(binary, &web, &[IN_IPTABLES, RARE])?;
    let proxy = lab.start()?;
    lab.settles_at(&web, "rr")?;
    let wanted = lab.sorted_rules()?;
    reload(lab.node())?;
    lab.nat().is_hidden(true)?;
    wait::until("all rules are iptables' again", || lab.are_rules(&wanted))?;
    lab.serves(&web, "after a reload")?;
    proxy.terminate()?;
    reload(lab.node())?;
    let _proxy = lab.start()?;
    wait::until("all rules are iptables' again", || lab.are_rules(&wanted))?;
    lab.serves(&web, "after a reload without it")?;
    lab.settles_at(&web, "rr")
}
