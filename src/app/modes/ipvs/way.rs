// SPDX-License-Identifier: Apache-2.0
//! The way in which IPVS mode holds its fixed rules and sets (`--ipvs-rules`).
//!
//! `auto` takes iptables with ipset where both work: others know kube-proxy's names there, a
//! kube-proxy that takes over again adopts them, and what others decide in iptables is decided
//! with ours in view. Where they are missing, IPVS mode runs all the same, in nftables. A program
//! that hangs or cannot be started says nothing about that: the node would change its way with the
//! next start, so that this start fails.
//!
//! Where the CNI plugin portmap publishes ports by nftables, `auto` takes nftables: no rule of
//! iptables keeps such a port from being that of every Service too. Until then the proxy waits for
//! that plugin's table. It comes with the first published port and stays until the node restarts;
//! if it goes, the way stays until the next start.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use tracing::{info, warn};

use crate::app::bootstrap::{Common, enabled_families, of_families, usable};
use crate::app::matches;
use crate::app::modes::Opening;
use crate::config::settings::IpvsRulesChoice;
use crate::dataplane::exec::ExecError;
use crate::dataplane::iptables::{Backend, Backends, Iptables, extension, legacy_has_chain};
use crate::dataplane::modes::ipvs::Held;
use crate::dataplane::own_table::{OwnTable, probe};
use crate::telemetry::ErrorChain;
use ipset_netlink as ipset;
use kpr_core::model::IpFamily;
use kpr_core::plan::IpvsRules;
use kpr_core::plan::ruleset::{Rule, Table};

/// Chains of kube-proxy, ours or not, that each mode has.
const EVIDENCE: [&str; 3] = ["KUBE-SERVICES", "KUBE-IPVS-FILTER", "KUBE-NODE-PORT"];

/// See the module.
pub(super) struct Way {
    pub(super) rules: IpvsRules,
    pub(super) common: Common,
    pub(super) held: Held,
    pub(super) families: Vec<IpFamily>,
    pub(super) missing_matches: BTreeSet<&'static str>,
    pub(super) security_tables: BTreeSet<IpFamily>,
}

impl Way {
    /// Opens the way that the settings ask for. `is_published`: see [`Self::auto`].
    pub(super) fn open(opening: &Opening<'_>, is_published: bool) -> anyhow::Result<Self> {
        let (way, reason) = match opening.settings.ipvs_rules {
            IpvsRulesChoice::Iptables => (Self::iptables(opening)?, "configured"),
            IpvsRulesChoice::Nftables => (Self::nftables(opening)?, "configured"),
            IpvsRulesChoice::Auto => Self::auto(opening, is_published)?,
        };
        let rules = way.rules.as_str();
        info!(rules, reason, "selected how to hold the rules of ipvs mode");
        opening.observer.ipvs_rules(rules, reason);
        Ok(way)
    }

    /// `is_published`: the CNI plugin portmap publishes ports by nftables.
    fn auto(
        opening: &Opening<'_>,
        is_published: bool,
    ) -> anyhow::Result<(Self, &'static str)> {
        if is_published {
            match Self::nftables_for_all(opening) {
                Ok(way) => return Ok((way, "published-ports")),
                Err(error) => warn!(
                    error = format!("{error:#}"),
                    "cannot use nftables beside ports that it publishes, trying iptables"
                ),
            }
        }
        let iptables = if extension::is_missing("set") {
            anyhow!("the kernel cannot match ipsets in rules (module xt_set)")
        } else {
            match Self::iptables(opening) {
                Ok(way) => return Ok((way, "iptables-works")),
                Err(error) if is_passing(&error) => return Err(error),
                Err(error) => error,
            }
        };
        warn!(
            error = format!("{iptables:#}"),
            "cannot use iptables and ipset, trying nftables"
        );
        match Self::nftables(opening) {
            Ok(way) => Ok((way, "no-iptables")),
            Err(nftables) => {
                Err(iptables.context(format!("nftables cannot be used instead of iptables: {nftables:#}")))
            }
        }
    }

    /// iptables rules that match ipsets.
    fn iptables(opening: &Opening<'_>) -> anyhow::Result<Self> {
        let ipset = ipset::Client::open().context("cannot use ipset")?;
        let (common, _) = Common::open(opening)?;
        let families = common.families();
        let security_tables = security_tables(&common.iptables)?;
        let observer = &*opening.observer;
        let has_security = security_tables.len() == families.len();
        observer.kernel_capability("iptable_security", has_security);
        let needed = matches::COMMON.iter();
        Ok(Self {
            rules: IpvsRules::Iptables,
            missing_matches: matches::missing(&common.iptables, needed, observer),
            common,
            // Only to find our table if it was left.
            held: Held::Ipsets(ipset, OwnTable::open().ok()),
            families,
            security_tables,
        })
    }

    /// Our nftables table, if it can have all families.
    fn nftables_for_all(opening: &Opening<'_>) -> anyhow::Result<Self> {
        enabled_families().try_for_each(probe)?;
        Self::nftables(opening)
    }

    /// Our nftables table. No program is started, unless iptables has rules that must go.
    fn nftables(opening: &Opening<'_>) -> anyhow::Result<Self> {
        let families = of_families("nftables", |family| {
            let result = probe(family);
            let name = match family {
                IpFamily::V4 => "nf_tables_ipv4",
                IpFamily::V6 => "nf_tables_ipv6",
            };
            opening.observer.kernel_capability(name, result.is_ok());
            result
        });
        let families = families.context("nftables cannot be used on this host")?;
        let mut table = OwnTable::open().context("cannot use nftables")?;
        let leftovers = leftovers(opening, &mut table);
        Ok(Self {
            rules: IpvsRules::Nftables,
            common: Common::over(opening, leftovers)?,
            held: Held::Table(table.watched(), loaded_ipset()),
            families: families.into_keys().collect(),
            missing_matches: BTreeSet::new(),
            security_tables: BTreeSet::new(),
        })
    }
}

/// Whether a program failed in a way that may pass, or did not run at all.
fn is_passing(error: &anyhow::Error) -> bool {
    let of_program = |cause: &(dyn Error + 'static)| {
        let failed = cause.downcast_ref::<ExecError>();
        failed.is_some_and(|failed| !failed.is_missing())
    };
    error.chain().any(of_program)
}

/// The iptables whose rules kube-proxy or we left, if there are any.
fn leftovers(opening: &Opening<'_>, table: &mut OwnTable) -> BTreeMap<IpFamily, Iptables> {
    let is_left = |backend, table: &mut OwnTable| {
        IpFamily::ALL.into_iter().any(|family| match backend {
            Backend::Nft => table.has_iptables_chains(family).unwrap_or(false),
            Backend::Legacy => legacy_has_chain(family, &EVIDENCE),
        })
    };
    for backend in [Backend::Nft, Backend::Legacy] {
        if !is_left(backend, table) {
            continue;
        }
        info!(%backend, "iptables has rules of kube-proxy, which will be removed");
        let found = Backends::detect(&**opening.exec, Some(backend))
            .and_then(|backends| usable(&backends, opening.exec));
        match found {
            Ok(usable) => return usable,
            Err(error) => {
                warn!(%backend, error = %ErrorChain(&error), "cannot remove iptables rules of kube-proxy, they keep working beside ours");
            }
        }
    }
    BTreeMap::new()
}

/// ipset, unless asking for it would load its module.
fn loaded_ipset() -> Option<ipset::Client> {
    let is_loaded = Path::new("/sys/module/ip_set").exists();
    is_loaded.then(ipset::Client::open)?.ok()
}

/// The families with a table `security` whose rules can change marks.
fn security_tables(iptables: &BTreeMap<IpFamily, Iptables>) -> anyhow::Result<BTreeSet<IpFamily>> {
    let mut able = BTreeSet::new();
    for (family, iptables) in iptables {
        let rule = Rule::new("-m connmark --mark 0x0 -j CONNMARK --save-mark");
        if iptables
            .knows(Table::Security, &rule)
            .context("cannot use iptables")?
        {
            able.insert(*family);
        } else {
            warn!(
                %family,
                "iptables has no table security or no connmark: what others do with packet marks may keep pods from Services with externalTrafficPolicy Local"
            );
        }
    }
    Ok(able)
}
