// SPDX-License-Identifier: Apache-2.0
//! What a family reports once: conflicts, unmet requests, rejected rules.

use std::collections::BTreeMap;

use tracing::trace;

use super::{
    BTreeSet, Clock, Conflict, Duration, Family, IpAddr, Observer, Plan, Planner, Report,
    ServiceName, ServicePortName, Unmet, error, warn,
};
use crate::events::{Event, action, reason};
use crate::line_limit::Verdict;
use crate::reconcile::service_errors::Refused;
use kpr_core::model::Holder;

impl<P: Planner> Family<P> {
    /// Whether to report one more message about a Service. What is not reported is told once, in
    /// the log and as an Event, so that nobody takes the rest for all.
    fn may_say(
        &mut self,
        service: &ServiceName,
        message: impl std::fmt::Display,
        now: Duration,
        observer: &dyn Observer,
    ) -> bool {
        let verdict = self.lines.verdict(&service.to_string(), now);
        if verdict != Verdict::Said {
            trace!(%service, %message, "not reported, there are more of this Service");
        }
        if verdict == Verdict::Silenced {
            observer.event(Event::silenced(service.clone()));
        }
        verdict == Verdict::Said
    }

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
            if !self.may_say(&service, cut, now, observer) {
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
            let by = by.map_or_else(|| "the older Service".to_owned(), |by| by.to_string());
            let note = format!("port {loser} is not served at {place}: {winner} holds it, as {by}");
            if !self.may_say(&loser.service, &note, now, observer) {
                continue;
            }
            warn!(service = %loser, %winner, %place, "address and port belong to another Service");
            observer.event(Event::service(
                loser.service,
                reason::ADDRESS_CONFLICT,
                action::PROGRAM,
                note,
            ));
        }
    }

    /// Reports once what a Service requests and does not get.
    fn report_unmet(&mut self, now: Duration, observer: &dyn Observer) {
        let family = self.family();
        let mut unmet = self.planner.unmet();
        // For a moment, when the first Service claims addresses.
        unmet.retain(|(_, unmet)| unmet.holder() != Some(Holder::Unknown));
        // What is true of many ports of a Service is said once, or an address would hide another.
        let mut new: BTreeMap<(ServiceName, Unmet), (ServicePortName, usize)> = BTreeMap::new();
        for (port, unmet) in self.unmet.update(unmet).new {
            let of_service = (port.service.clone(), unmet);
            let (_, more) = new.entry(of_service).or_insert_with(|| (port, 0));
            *more += 1;
        }
        for ((service, unmet), (port, ports)) in new {
            let more_ports = Some(ports - 1).filter(|more| *more > 0);
            let others = more_ports.map_or_else(String::new, |more| format!(" and {more} more"));
            let note = format!("port {port}{others}, {family}: {unmet}");
            if !self.may_say(&service, &note, now, observer) {
                continue;
            }
            warn!(service = %port, more_ports, %unmet, "Service setting not supported on this node");
            let reason = match unmet {
                Unmet::SchedulerMissing { .. }
                | Unmet::ClientHashMissing { .. }
                | Unmet::NoSchedulerFlags { .. }
                | Unmet::NoSlowStart { .. }
                | Unmet::NoPlaceWeights { .. }
                | Unmet::NoZone
                | Unmet::NoOnePacket { .. }
                | Unmet::NoForwarding { .. }
                | Unmet::ForwardingInPart { .. }
                | Unmet::SchedulerTooCostly { .. }
                | Unmet::SchedulerNotAllowed { .. }
                | Unmet::MarkShareUsed
                | Unmet::SameChains { .. }
                | Unmet::FewClients { .. }
                | Unmet::NoAffinity
                | Unmet::NoMark => reason::SETTING_NOT_POSSIBLE,
                Unmet::NotBound { .. } | Unmet::NotServed { .. } => reason::ADDRESS_NOT_BOUND,
            };
            observer.event(Event::service(service, reason, action::PROGRAM, note));
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
            let note = format!("port {port}: the kernel refuses to {message}");
            if self.may_say(&port.service, &note, clock.monotonic(), observer) {
                let reason = reason::REFUSED_BY_KERNEL;
                observer.event(Event::service(port.service, reason, action::PROGRAM, note));
            }
        }
    }

    /// Reports once whose rules the kernel rejected, and which chains it kept.
    pub(super) fn report_quarantined(&mut self, clock: &Clock, observer: &dyn Observer) {
        let family = self.family();
        let Some(isolation) = self.planner.isolation() else {
            return;
        };
        let undeletable = isolation.undeletable_chains();
        if *isolation.quarantined() != *self.quarantined.present() {
            for port in self.quarantined.update(isolation.quarantined().clone()).new {
                self.errors.quarantined(&port, clock.now());
                let note = format!(
                    "the kernel rejected the {family} rules of port {port}; keeping the previous rules"
                );
                if !self.may_say(&port.service, &note, clock.monotonic(), observer) {
                    continue;
                }
                error!(service = %port, "kernel rejected the rules of this Service, keeping the previous rules");
                let reason = reason::REFUSED_BY_KERNEL;
                observer.event(Event::service(port.service, reason, action::PROGRAM, note));
            }
        }
        for (table, chain) in self.undeletable.update(undeletable).new {
            warn!(%table, %chain, "cannot delete chain: a foreign rule jumps to it");
        }
    }
}
