// SPDX-License-Identifier: Apache-2.0
//! What a family reports once: conflicts, unmet requests, rejected rules.

use super::{
    BTreeSet, Clock, Conflict, Duration, Family, IpAddr, Observer, Plan, Planner, Report, Unmet,
    error, warn,
};
use crate::events::{Event, action, reason};
use crate::reconcile::service_errors::Refused;
use kpr_core::model::Holder;

impl<P: Planner> Family<P> {
    /// Reports new conflicts, unmet requests and what is beyond the budget. Costs nothing if there
    /// can be none.
    pub(super) fn report_findings(&mut self, clock: &Clock, observer: &dyn Observer) {
        let revision = self.planner.revision();
        if self.reported.replace(revision) == Some(revision) {
            return;
        }
        let now = clock.monotonic();
        self.report_conflicts(now, observer);
        self.report_unmet(now, observer);
        self.report_cuts(now, observer);
    }

    /// Reports once what is left out of a Service because it is too much.
    fn report_cuts(&mut self, now: Duration, observer: &dyn Observer) {
        let family = self.family();
        let cuts = self.planner.cuts().map(|cuts| {
            let cuts = cuts.iter().map(|(service, cut)| (service.clone(), cut));
            cuts.collect()
        });
        for (service, cut) in self.cuts.update(cuts.unwrap_or_default()).new {
            if !self.lines.allows(&service.to_string(), now) {
                continue;
            }
            warn!(%service, %cut, "Service is over its budget");
            let message = format!("{family}: {cut}");
            observer.event(Event::service(
                service,
                reason::OVER_BUDGET,
                action::PROGRAM,
                message,
            ));
        }
        observer.over_budget(family, self.cuts.present().len());
    }

    /// Logs each new conflict once: two Services claim one address and port.
    fn report_conflicts(&mut self, now: Duration, observer: &dyn Observer) {
        for conflict in self.conflicts.update(self.planner.conflicts()).new {
            let Conflict {
                loser,
                winner,
                by,
                place,
            } = conflict;
            if !self.lines.allows(&loser.service.to_string(), now) {
                continue;
            }
            warn!(service = %loser, %winner, %place, "address and port belong to another Service");
            observer.event(Event::service(
                loser.service.clone(),
                reason::ADDRESS_CONFLICT,
                action::PROGRAM,
                format!(
                    "port {loser} is not served at {place}: {winner} holds it, as {}",
                    by.map_or_else(|| "the older Service".to_owned(), |by| by.to_string()),
                ),
            ));
        }
    }

    /// Reports once what a Service requests and does not get.
    fn report_unmet(&mut self, now: Duration, observer: &dyn Observer) {
        let family = self.family();
        let mut unmet = self.planner.unmet();
        // For a moment, when the first Service claims addresses.
        unmet.retain(|(_, unmet)| unmet.holder() != Some(Holder::Unknown));
        for (service, unmet) in self.unmet.update(unmet).new {
            if !self.lines.allows(&service.service.to_string(), now) {
                continue;
            }
            warn!(%service, %unmet, "Service setting not supported on this node");
            let reason = match unmet {
                Unmet::SchedulerMissing { .. }
                | Unmet::ClientHashMissing { .. }
                | Unmet::NoSchedulerFlags { .. }
                | Unmet::NoSlowStart { .. }
                | Unmet::NoPlaceWeights { .. }
                | Unmet::NoZone
                | Unmet::NoForwarding { .. }
                | Unmet::ForwardingInPart { .. }
                | Unmet::SchedulerTooCostly { .. }
                | Unmet::SchedulerNotAllowed { .. }
                | Unmet::TunnelOutside { .. }
                | Unmet::MarkShareUsed
                | Unmet::SameChains { .. }
                | Unmet::NoMark => reason::SETTING_NOT_POSSIBLE,
                Unmet::NotBound { .. } | Unmet::NotServed { .. } => reason::ADDRESS_NOT_BOUND,
            };
            let message = format!("port {service}, {family}: {unmet}");
            observer.event(Event::service(
                service.service,
                reason,
                action::PROGRAM,
                message,
            ));
        }
        let unbound: BTreeSet<IpAddr> = self
            .unmet
            .present()
            .iter()
            .filter_map(|(_, unmet)| match unmet {
                Unmet::NotBound { address, .. } | Unmet::NotServed { address, .. } => {
                    Some(*address)
                }
                _ => None,
            })
            .collect();
        observer.unbound_addresses(family, unbound.len());
    }

    /// Reports once what the kernel rejected of each Service.
    pub(super) fn report_errors(
        &mut self,
        clock: &Clock,
        observer: &dyn Observer,
        plan: &Plan<P::Step>,
        report: &Report,
    ) {
        let new = self.errors.follow(&self.planner, plan, report, clock.now());
        for Refused { port, message } in new {
            observer.event(Event::service(
                port.service.clone(),
                reason::REFUSED_BY_KERNEL,
                action::PROGRAM,
                format!("port {port}: the kernel refuses to {message}"),
            ));
        }
    }

    /// Reports once whose rules the kernel rejected, and which chains it kept.
    pub(super) fn report_quarantined(&mut self, clock: &Clock, observer: &dyn Observer) {
        let family = self.family();
        let Some(isolation) = self.planner.isolation() else {
            return;
        };
        if *isolation.quarantined() != *self.quarantined.present() {
            for service in self.quarantined.update(isolation.quarantined().clone()).new {
                error!(%service, "kernel rejected the rules of this Service, keeping the previous rules");
                self.errors.quarantined(&service, clock.now());
                let message = format!(
                    "the kernel rejected the {family} rules of port {service}; keeping the previous rules"
                );
                observer.event(Event::service(
                    service.service,
                    reason::REFUSED_BY_KERNEL,
                    action::PROGRAM,
                    message,
                ));
            }
        }
        for (table, chain) in self.undeletable.update(isolation.undeletable_chains()).new {
            warn!(%table, %chain, "cannot delete chain: a foreign rule jumps to it");
        }
    }
}
