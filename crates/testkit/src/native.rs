// SPDX-License-Identifier: Apache-2.0
//! Tables of iptables as nft shows them, and another program's rules in them that iptables cannot
//! list.

use std::fs;
use std::ops::RangeInclusive;

use anyhow::{Context as _, Result, ensure};

use crate::namespace::Namespace;
use crate::topology::Family;
use crate::wait;

/// One of them on a node.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    node: &'a Namespace,
    pub family: Family,
    pub name: &'static str,
    /// The kernel's chain from which the other program's is reached.
    chain: &'static str,
    /// What that does with packets.
    verdict: &'static str,
}

impl<'a> Table<'a> {
    /// As Tailscale's rules are.
    pub const fn nat(node: &'a Namespace, family: Family) -> Self {
        Self {
            node,
            family,
            name: "nat",
            chain: "POSTROUTING",
            verdict: "masquerade",
        }
    }

    /// As Calico's are.
    pub const fn filter(node: &'a Namespace, family: Family) -> Self {
        Self {
            node,
            family,
            name: "filter",
            chain: "FORWARD",
            verdict: "accept",
        }
    }

    /// Runs `nft` with words between spaces, those behind the table's name apart.
    pub fn nft(self, words: &str, rest: &str) -> Result<String> {
        let family = match self.family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        let words = format!("{words} {family} {} {rest}", self.name);
        let words: Vec<&str> = words.split(' ').collect();
        self.node.run("nft", &words)
    }

    /// The other program comes, with a chain of its own: iptables cannot list the table.
    pub fn hide(self) -> Result<()> {
        let rule = "numgen random mod 2 0 counter";
        self.nft("add chain", "native")?;
        self.nft("add rule", &format!("native {rule} {}", self.verdict))?;
        self.nft("insert rule", &format!("{} {rule} jump native", self.chain))?;
        self.is_hidden(true)
    }

    pub fn is_hidden(self, wanted: bool) -> Result<()> {
        let program = match self.family {
            Family::V4 => "iptables-nft-save",
            Family::V6 => "ip6tables-nft-save",
        };
        let text = self.node.run(program, &["-t", self.name])?;
        ensure!(text.contains("is incompatible") == wanted, "{text}");
        Ok(())
    }

    /// It goes.
    pub fn reveal(self) -> Result<()> {
        self.delete(self.chain, "jump native")?;
        self.nft("flush chain", "native")?;
        self.nft("delete chain", "native")?;
        self.is_hidden(false)
    }

    /// Deletes the rules of a chain that contain a text. The proxy may put others in their place
    /// between the list and this.
    pub fn delete(self, chain: &str, text: &str) -> Result<()> {
        wait::until(&format!("{text} is deleted from {chain}"), || {
            for handle in self.handles(chain, text)? {
                self.nft("delete rule", &format!("{chain} handle {handle}"))?;
            }
            Ok(())
        })
    }

    /// The handles of rules of a chain that contain a text.
    pub fn handles(self, chain: &str, text: &str) -> Result<Vec<String>> {
        let listed = self.nft("-a list chain", chain)?;
        // Not the lines of table and chain.
        let rules = listed
            .lines()
            .filter(|line| line.contains(text) && !line.contains("{ # handle "));
        let handle = |line: &str| Some(line.rsplit_once("# handle ")?.1.trim().to_owned());
        Ok(rules.filter_map(handle).collect())
    }

    /// Waits for so many rules with a text in a chain.
    pub fn has(self, chain: &str, text: &str, count: RangeInclusive<usize>) -> Result<()> {
        wait::until(&format!("{chain} has {text:?} {count:?} times"), || {
            let found = self.handles(chain, text)?.len();
            ensure!(count.contains(&found), "it has it {found} times");
            Ok(())
        })
    }
}

/// `nft list ruleset >FILE` and `nft -f FILE`, as the service of Debian does, turn rules of
/// iptables into nft's own.
pub fn reload(node: &Namespace) -> Result<()> {
    let ruleset = node.run("nft", &["list", "ruleset"])?;
    // What this nft cannot express it would not take back.
    let known = ruleset
        .lines()
        .filter(|line| !line.contains("xt match") && !line.contains("xt target"));
    let text = known.collect::<Vec<_>>().join("\n");
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), format!("flush ruleset\n{text}\n"))?;
    let path = file.path().to_str().context("a path")?;
    node.run("nft", &["-f", path])?;
    Ok(())
}
