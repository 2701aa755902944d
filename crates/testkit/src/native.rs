// SPDX-License-Identifier: Apache-2.0
//! `table ip nat` as nft shows it, and another program's rules in it that iptables cannot list.

use std::ops::RangeInclusive;

use anyhow::{Result, ensure};

use crate::namespace::Namespace;
use crate::wait;

/// A rule that iptables cannot print, in a chain of its own and in one of the kernel's, as
/// Tailscale and Calico have them.
const NATIVE: [&str; 3] = [
    "add chain ip nat ts-postrouting",
    "add rule ip nat ts-postrouting numgen random mod 2 0 counter masquerade",
    "insert rule ip nat POSTROUTING numgen random mod 2 0 counter jump ts-postrouting",
];

/// That of a node.
#[derive(Clone, Copy, Debug)]
pub struct NatTable<'a>(pub &'a Namespace);

impl NatTable<'_> {
    /// Runs `nft` with words between spaces.
    pub fn nft(self, words: &str) -> Result<String> {
        let words: Vec<&str> = words.split(' ').collect();
        self.0.run("nft", &words)
    }

    /// The other program comes: iptables cannot list the table.
    pub fn hide(self) -> Result<()> {
        for command in NATIVE {
            self.nft(command)?;
        }
        self.is_hidden(true)
    }

    pub fn is_hidden(self, wanted: bool) -> Result<()> {
        let text = self.0.run("iptables-nft-save", &["-t", "nat"])?;
        ensure!(text.contains("is incompatible") == wanted, "{text}");
        Ok(())
    }

    /// It goes.
    pub fn reveal(self) -> Result<()> {
        self.delete("POSTROUTING", "jump ts-postrouting")?;
        self.nft("flush chain ip nat ts-postrouting")?;
        self.nft("delete chain ip nat ts-postrouting")?;
        self.is_hidden(false)
    }

    /// Deletes the rules of a chain that contain a text.
    pub fn delete(self, chain: &str, text: &str) -> Result<()> {
        for handle in self.handles(chain, text)? {
            self.nft(&format!("delete rule ip nat {chain} handle {handle}"))?;
        }
        Ok(())
    }

    /// The handles of rules of a chain that contain a text.
    fn handles(self, chain: &str, text: &str) -> Result<Vec<String>> {
        let listed = self.nft(&format!("-a list chain ip nat {chain}"))?;
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
