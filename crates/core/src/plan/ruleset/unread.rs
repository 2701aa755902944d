// SPDX-License-Identifier: Apache-2.0
//! PURE: rules that exist and cannot be read: iptables prints no rule of a table in which another
//! program has a rule of nft's own. Ours are then believed as they were written, or written anew.

use crate::plan::ruleset::{Edit, Rule, Ruleset};

/// No rule that iptables prints begins with it.
const UNREAD: &str = "unread";

impl Rule {
    /// Stands for the rules of a chain.
    pub fn unread() -> Self {
        Self::new(UNREAD)
    }

    /// A rule of which only the kernel's number and the chain to which it jumps are known.
    pub fn unread_jump(handle: u64, target: &str) -> Self {
        Self::new(format!("{UNREAD} {handle} -j {target}"))
    }

    /// Whether nothing else is known of the rule.
    pub fn is_unread(&self) -> bool {
        self.as_str().starts_with(UNREAD)
    }

    /// The kernel's number of an unread jump, by which it can be deleted.
    pub fn unread_handle(&self) -> Option<u64> {
        let rest = self.as_str().strip_prefix(UNREAD)?;
        rest.split_ascii_whitespace().next()?.parse().ok()
    }
}

impl Ruleset {
    /// Fills in what was not read and nobody touched, from what was known before.
    pub fn recall(&mut self, before: &Self) {
        for (table, chains) in &self.unread {
            for chain in chains {
                if let Some(rules) = before.rules(*table, chain) {
                    self.chains.insert((*table, chain.clone()), rules.to_vec());
                }
            }
        }
    }
}

/// Deletes the jumps of a chain that lead where a rule does which is written, and whose other
/// matches are not known.
pub fn unread_jumps(present: Option<&[Rule]>, written: &Edit) -> Vec<Edit> {
    let (Edit::Prepend { table, chain, rule } | Edit::Append { table, chain, rule }) = written
    else {
        return Vec::new();
    };
    let present = present.into_iter().flatten();
    let old = present.filter(|old| {
        old.unread_handle().is_some() && old.target().is_some() && old.target() == rule.target()
    });
    old.map(|rule| Edit::Delete {
        table: *table,
        chain: chain.clone(),
        rule: rule.clone(),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ruleset::{ChainName, Table};

    #[test]
    fn an_unread_jump_is_known_by_handle_and_target() {
        let jump = Rule::unread_jump(7, "KUBE-SERVICES");
        assert!(jump.is_unread());
        assert_eq!(jump.unread_handle(), Some(7));
        assert_eq!(jump.target(), Some("KUBE-SERVICES"));
        let rest = Rule::unread();
        assert!(rest.is_unread());
        assert_eq!((rest.unread_handle(), rest.target()), (None, None));
        assert!(!Rule::new("-j KUBE-SERVICES").is_unread());
    }

    #[test]
    fn untouched_chains_are_as_before_and_others_as_found() {
        let name = |name| ChainName::new(name).unwrap();
        let mut before = Ruleset::new();
        for chain in ["KUBE-A", "KUBE-B", "KUBE-GONE"] {
            before.set(Table::Nat, name(chain), vec![Rule::new("-j ACCEPT")]);
        }
        let mut found = Ruleset::new();
        for chain in ["KUBE-A", "KUBE-B", "KUBE-NEW"] {
            found.set(Table::Nat, name(chain), vec![Rule::unread()]);
        }
        let untouched = ["KUBE-A", "KUBE-NEW"].map(name);
        found.unread.insert(Table::Nat, untouched.into());
        found.recall(&before);
        let rules = |chain| found.rules(Table::Nat, &name(chain)).map(<[Rule]>::to_vec);
        assert_eq!(rules("KUBE-A"), Some(vec![Rule::new("-j ACCEPT")]));
        assert_eq!(rules("KUBE-B"), Some(vec![Rule::unread()]));
        assert_eq!(rules("KUBE-NEW"), Some(vec![Rule::unread()]));
        assert_eq!(rules("KUBE-GONE"), None);
    }
}
