// SPDX-License-Identifier: Apache-2.0
//! The loop and its node: addresses, the Node object, and what may be wrong with either.

use tracing::{error, warn};

use super::Reconciler;
use super::context::{Missing, NodeView};
use super::family::Family;
use super::network_warnings::network_warnings;
use super::node_warnings::node_warnings;
use crate::config::settings::IpvsRulesChoice;
use crate::dataplane::kernel::{AuditDepth, Kernel, ObserveError};
use crate::events::{Event, action, reason};
use crate::telemetry::ErrorChain;
use kpr_core::model::{IpFamily, NodeClaims};
use kpr_core::plan::Planner;

impl<P: Planner, K: Kernel<P>> Reconciler<P, K> {
    /// Reads the node's addresses and what is around them. Returns whether planning may change.
    pub(super) fn look_at_addresses(&mut self, depth: AuditDepth) -> bool {
        match self.read_addresses(depth) {
            Ok(is_news) => is_news,
            Err(error) => {
                warn!(error = %ErrorChain(&error), "failed to read node addresses");
                false
            }
        }
    }

    fn read_addresses(&mut self, depth: AuditDepth) -> Result<bool, ObserveError> {
        let around = match depth {
            AuditDepth::Outline => self.kernel.known_surroundings()?,
            AuditDepth::Everything => self.kernel.surroundings()?,
        };
        let known = std::mem::replace(&mut self.facts.around, around);
        let around = &self.facts.around;
        let has_others = around.gateways != known.gateways
            || around.networks != known.networks
            || around.resolvers != known.resolvers;
        let has_moved = around.addresses != known.addresses || around.sync_link != known.sync_link;
        let has_news = around.network != known.network;
        let moves_rules = !known.network.publishes_ports
            && self.settings.ipvs_rules == IpvsRulesChoice::Auto
            && NodeView::new(&self.settings, &self.facts).loses_ports();
        if moves_rules {
            self.observer.ports_published();
        }
        self.holders_due |= has_others;
        self.facts_changed |= has_moved;
        // What is only warned of changes no plan.
        if has_news && self.is_started && !moves_rules {
            self.report_warnings();
        }
        Ok(has_others || has_moved)
    }

    pub(super) fn missing(&self) -> Option<Missing> {
        if self.node_listed {
            self.facts.missing(&self.settings, &self.tracker)
        } else {
            Some(Missing::Node)
        }
    }

    /// The same as a sentence for operators.
    pub(super) fn missing_in_words(&self) -> Option<String> {
        self.missing().map(|missing| match missing {
            Missing::Node => format!(
                "there is no Node object {:?} with an address; if the kubelet registered another \
                 name, correct --hostname-override",
                self.facts.name
            ),
            Missing::PodCidrs | Missing::OtherNodes => missing.to_string(),
        })
    }

    /// Reports what is missing when the first round stops waiting.
    pub(super) fn start(&mut self) {
        if !std::mem::replace(&mut self.is_started, true) {
            self.observer.ready();
            if let Some(missing) = self.missing_in_words() {
                error!(
                    missing,
                    "initial sync timed out, starting without these resources"
                );
                self.observer.event(Event::node(
                    reason::NODE_INCOMPLETE,
                    action::START,
                    format!("{missing}; it will be used once it exists"),
                ));
                if self.missing() == Some(Missing::OtherNodes) {
                    // Addresses no longer wait for it.
                    self.facts.nodes = Some(NodeClaims::default());
                    self.holders_due = true;
                }
            }
            self.report_warnings();
        }
    }

    /// Reports once which settings do not fit this node.
    pub(super) fn report_warnings(&mut self) {
        let families: Vec<IpFamily> = self.families().map(Family::family).collect();
        let node = NodeView::new(&self.settings, &self.facts);
        for warning in self
            .warnings
            .update(&node_warnings(node, &families) | &network_warnings(node, &families))
            .new
        {
            warn!(warning, "configuration may be wrong for this node");
            self.observer.event(Event::node(
                reason::DOUBTFUL_CONFIGURATION,
                action::CONFIGURE,
                warning,
            ));
        }
    }
}
