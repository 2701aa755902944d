// SPDX-License-Identifier: Apache-2.0
//! The modes that this program has, one line each. A mode is a planner ([`kpr_core::plan::mode`]),
//! the kernel as that planner uses it ([`crate::dataplane::modes`]), and a way to open both.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context as _;
use prometheus::Registry;

use crate::clock::Clock;
use crate::config::settings::Settings;
use crate::dataplane::exec::Exec;
use crate::reconcile::observer::Observer;
use crate::reconcile::sync_loop::SyncLoop;
use kpr_core::model::{IpFamily, ProxyMode};

/// Declares the modules of the modes and lists them.
macro_rules! modes {
    ($($(#[$attribute:meta])* $module:ident)*) => {
        $($(#[$attribute])* mod $module;)*

        /// Every mode, by its name.
        const MODES: &[(ProxyMode, Open)] = &[
            $($(#[$attribute])* ($module::MODE, $module::open),)*
        ];
    };
}

modes! {
    iptables
    ipvs
    #[cfg(test)] memory
}

pub(super) use ipvs::{has_scheduler, leftovers};

/// What a mode is opened with.
pub(super) struct Opening<'a> {
    pub(super) settings: Arc<Settings>,
    pub(super) exec: &'a Arc<dyn Exec>,
    pub(super) clock: Clock,
    pub(super) observer: Arc<dyn Observer>,
    /// The addresses of the API server.
    pub(super) api_servers: BTreeSet<IpAddr>,
    /// Where metrics of the kernel's own counters go, if the proxy is going to run.
    pub(super) registry: Option<&'a Registry>,
}

/// A mode that can work here.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) sync: Box<dyn SyncLoop>,
    pub(super) families: Vec<IpFamily>,
}

/// Opens what a mode needs of the kernel and makes its loop. One that cannot work here says why.
type Open = fn(Opening<'_>) -> anyhow::Result<Opened>;

/// Opens the mode that the settings ask for.
pub(super) fn open(opening: Opening<'_>) -> anyhow::Result<Opened> {
    let mode = opening.settings.mode;
    let known = MODES.iter().find(|(name, _)| *name == mode);
    let (_, open) = known.with_context(|| format!("no mode {mode}"))?;
    open(opening)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_that_can_be_configured_is_here() {
        for name in ["iptables", "ipvs"] {
            let mode: ProxyMode = name.parse().unwrap();
            assert!(MODES.iter().any(|(known, _)| *known == mode), "{name}");
        }
        let others = MODES
            .iter()
            .filter(|(mode, _)| mode.as_str().parse() != Ok(*mode));
        assert_eq!(others.count(), 1, "only the one for tests");
    }
}
