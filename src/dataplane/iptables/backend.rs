// SPDX-License-Identifier: Apache-2.0
//! Which iptables backend to use: a machine may have two (`legacy` and `nft`), which do not see
//! each other's rules.
//!
//! Ours must be the one that kubelet uses. Like
//! <https://github.com/kubernetes-sigs/iptables-wrappers> we look for the chains that kubelet
//! creates as a hint. Without them that takes nft; we take the backend that works, else the one
//! that has more rules, else the one that plain `iptables` is.

use std::cmp::Ordering;
use std::str::FromStr;
use std::{fmt, iter};

use tracing::debug;

use super::IptablesError;
use crate::dataplane::exec::Exec;
use crate::dataplane::nftables;
use kpr_core::model::net::IpFamily;
use kpr_core::plan::ruleset::unlisted;

/// One of the two backends of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    Legacy,
    Nft,
}

impl Backend {
    /// `legacy` or `nft`, as in the names of the programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Nft => "nft",
        }
    }

    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Legacy => Self::Nft,
            Self::Nft => Self::Legacy,
        }
    }

    /// The most rules of one batch; `None` where larger ones cost no more than their parts would.
    ///
    /// legacy exchanges whole tables, so that each batch costs as much as the tables are long. nft
    /// costs more than in proportion to the batch and hardly anything for the table: see
    /// docs/scale.md for what was measured.
    pub const fn batch_limit(self) -> Option<usize> {
        match self {
            Self::Legacy => None,
            Self::Nft => Some(4_000),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A version of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

/// The first version whose `iptables-restore` waits for the lock (`-w`).
const OLDEST: Version = Version(1, 6, 2);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// From `iptables v1.8.9 (nf_tables)`.
impl FromStr for Version {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let word = text
            .split_ascii_whitespace()
            .find_map(|word| {
                word.strip_prefix('v')
                    .filter(|rest| rest.starts_with(is_digit))
            })
            .ok_or(())?;
        let mut numbers = word.split('.').map(|number| {
            number
                .trim_end_matches(|c| !is_digit(c))
                .parse()
                .map_err(|_bad| ())
        });
        let major = numbers.next().ok_or(())??;
        let minor = numbers.next().ok_or(())??;
        let patch = numbers.next().unwrap_or(Ok(0))?;
        Ok(Self(major, minor, patch))
    }
}

const fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
}

/// The programs for one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    pub family: IpFamily,
    pub backend: Backend,
    /// Such as `ip6tables-nft-save`.
    pub save: String,
    /// Such as `ip6tables-nft-restore`.
    pub restore: String,
}

impl Programs {
    /// The programs of a backend, under its name or the plain ones.
    fn new(family: IpFamily, backend: Backend, has_variants: bool) -> Self {
        let base = match family {
            IpFamily::V4 => "iptables",
            IpFamily::V6 => "ip6tables",
        };
        let base = if has_variants {
            format!("{base}-{backend}")
        } else {
            base.to_owned()
        };
        Self {
            family,
            backend,
            save: format!("{base}-save"),
            restore: format!("{base}-restore"),
        }
    }
}

/// Why a backend was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The configuration says so.
    Configured,
    /// It has kubelet's chains.
    Hint,
    /// It has more rules than the other one.
    Rules,
    /// Neither has more rules; plain `iptables` is this one.
    Default,
    /// The other one cannot be used on this machine.
    OnlyOne,
}

impl Reason {
    /// The value of the metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Hint => "hint",
            Self::Rules => "rules",
            Self::Default => "default",
            Self::OnlyOne => "only-one",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Configured => "configured",
            Self::Hint => "it has kubelet's chains",
            Self::Rules => "it has more rules",
            Self::Default => "it is the default",
            Self::OnlyOne => "it is the only one that works",
        })
    }
}

/// What [`Backends::detect`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backends {
    pub backend: Backend,
    pub reason: Reason,
    pub version: Version,
    /// Whether the programs carry the backend's name; else only the plain ones exist.
    has_variants: bool,
}

/// What detection saw of a backend.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    installed: bool,
    works: bool,
    hints: usize,
    rules: usize,
}

impl Backends {
    /// Finds the backend to use, unless `wanted` names it.
    pub fn detect(exec: &dyn Exec, wanted: Option<Backend>) -> Result<Self, IptablesError> {
        let default = default_of(exec)?;
        let (backend, reason) = match wanted {
            Some(backend) => (backend, Reason::Configured),
            None => choose(exec, default)?,
        };
        let restore_of = |has_variants| Programs::new(IpFamily::V4, backend, has_variants).restore;
        let variant = restore_of(true);
        let (program, text, has_variants) = match version_text(exec, &variant)? {
            Some(text) => (variant, text, true),
            // The plain programs will do if they are of this backend.
            None if default == Some(backend) => {
                let plain = restore_of(false);
                let text = version_text(exec, &plain)?;
                let text = text.ok_or_else(|| not_installed(&plain))?;
                (plain, text, false)
            }
            None => return Err(not_installed(&variant)),
        };
        let Ok(version) = text.parse() else {
            return Err(IptablesError::UnknownVersion { program, text });
        };
        if version < OLDEST {
            return Err(IptablesError::TooOld {
                program,
                version,
                needed: OLDEST,
            });
        }
        Ok(Self {
            backend,
            reason,
            version,
            has_variants,
        })
    }

    /// The programs for a family.
    pub fn programs(&self, family: IpFamily) -> Programs {
        Programs::new(family, self.backend, self.has_variants)
    }
}

fn choose(exec: &dyn Exec, default: Option<Backend>) -> Result<(Backend, Reason), IptablesError> {
    // Reading one table is cheap even if another one is large. legacy would create a missing table.
    let hint = look(exec, Backend::Nft, &["-t", "mangle"])?;
    if hint.hints > 0 {
        return Ok((Backend::Nft, Reason::Hint));
    }
    let legacy = look(exec, Backend::Legacy, &[])?;
    debug!(nft_mangle = ?hint, ?legacy, "looked for iptables backends");
    if legacy.hints > 0 {
        return Ok((Backend::Legacy, Reason::Hint));
    }
    match (hint.works, legacy.works) {
        (true, false) => return Ok((Backend::Nft, Reason::OnlyOne)),
        (false, true) => return Ok((Backend::Legacy, Reason::OnlyOne)),
        (false, false) if !(hint.installed || legacy.installed) => {
            // The plain programs of a version before there were two backends.
            let only =
                default.ok_or_else(|| not_installed("iptables, iptables-nft, iptables-legacy"))?;
            return Ok((only, Reason::OnlyOne));
        }
        _ => {}
    }
    let nft = look(exec, Backend::Nft, &[])?;
    Ok(match legacy.rules.cmp(&nft.rules) {
        Ordering::Greater => (Backend::Legacy, Reason::Rules),
        Ordering::Less => (Backend::Nft, Reason::Rules),
        Ordering::Equal => (default.unwrap_or(Backend::Nft), Reason::Default),
    })
}

fn not_installed(looked_for: &str) -> IptablesError {
    IptablesError::NotInstalled {
        looked_for: looked_for.to_owned(),
    }
}

/// The chains of table `mangle` that kubelet makes.
const HINTS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

/// The number of kubelet's hints in a table that iptables cannot list.
fn hints(family: IpFamily, table: &str) -> usize {
    if table != "mangle" {
        return 0;
    }
    let chains = nftables::chains(family, table).unwrap_or_default();
    let hints = HINTS.into_iter().filter(|hint| chains.contains_key(*hint));
    hints.count()
}

/// Reads the rules of both families of one backend.
fn look(exec: &dyn Exec, backend: Backend, args: &[&str]) -> Result<Seen, IptablesError> {
    let mut seen = Seen::default();
    for family in IpFamily::ALL {
        let program = Programs::new(family, backend, true).save;
        let mut of_family = Seen::default();
        let mut in_mangle = false;
        let mut count = |piece: &[u8]| {
            for line in String::from_utf8_lossy(piece).lines() {
                if let Some(table) = unlisted(line) {
                    // It has rules, among them perhaps kubelet's.
                    of_family.rules += 1;
                    of_family.hints += hints(family, table);
                } else if let Some(table) = line.strip_prefix('*') {
                    in_mangle = table == "mangle";
                } else if line.starts_with('-') {
                    of_family.rules += 1;
                } else if in_mangle
                    && let Some((chain, _)) = line.strip_prefix(':').and_then(|l| l.split_once(' '))
                    && HINTS.contains(&chain)
                {
                    of_family.hints += 1;
                }
            }
        };
        let ended = match exec.stream(&program, args, &mut iter::empty(), &mut count) {
            Ok(ended) => ended,
            Err(error) if error.is_missing() => continue,
            Err(error) => return Err(IptablesError::Exec(error)),
        };
        seen.installed = true;
        // A kernel without this backend fails here, and one without IPv6 for that family.
        if ended.succeeded() {
            seen.works = true;
            seen.rules += of_family.rules;
            seen.hints += of_family.hints;
        }
    }
    Ok(seen)
}

/// The backend of plain `iptables`; `None` if it does not exist.
fn default_of(exec: &dyn Exec) -> Result<Option<Backend>, IptablesError> {
    let output = match exec.run("iptables", &["--version"], b"") {
        Ok(output) => output,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(IptablesError::Exec(error)),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    // Before 1.8 there was one backend, which the version does not name.
    let backend = if text.contains("nf_tables") {
        Backend::Nft
    } else {
        Backend::Legacy
    };
    Ok(Some(backend))
}

/// The version that a program prints; `None` if there is no such program.
fn version_text(exec: &dyn Exec, program: &str) -> Result<Option<String>, IptablesError> {
    match exec.run(program, &["--version"], b"") {
        Ok(output) => Ok(Some(
            String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(IptablesError::Exec(error)),
    }
}
