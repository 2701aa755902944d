// SPDX-License-Identifier: Apache-2.0
//! The loop of any mode, as the rest of the program sees it.

use std::fmt;

use futures::future::LocalBoxFuture;
use tokio::sync::{mpsc, watch};

use super::family::ObserveScope;
use super::plan_text::PlanText;
use super::{Input, Reconciler, Served};
use crate::dataplane::kernel::{Kernel, ObserveError};
use crate::source::Update;
use kpr_core::model::Changes;
use kpr_core::plan::Planner;

/// A reconciler with its mode erased.
pub trait SyncLoop: fmt::Debug + Send {
    /// Runs until the inputs end or `stop` is true. A round in flight is finished. Its kernel calls
    /// block: it needs its own thread.
    fn run(
        self: Box<Self>,
        inputs: mpsc::Receiver<Input>,
        stop: watch::Receiver<bool>,
    ) -> LocalBoxFuture<'static, ()>;

    /// Takes in everything that a source sent, and returns the plan of a full round without
    /// applying it. For `kube-proxy-rs plan`.
    fn plan_only(self: Box<Self>, updates: Vec<Update>) -> Result<Vec<PlanText>, ObserveError>;

    /// Writes the kernel settings of the mode. For `--init-only`. Returns the number of settings
    /// and the failures.
    fn write_settings(&mut self) -> (usize, Vec<String>);
}

impl<P, K> SyncLoop for Reconciler<P, K>
where
    P: Planner + 'static,
    K: Kernel<P> + fmt::Debug + 'static,
{
    fn run(
        self: Box<Self>,
        inputs: mpsc::Receiver<Input>,
        stop: watch::Receiver<bool>,
    ) -> LocalBoxFuture<'static, ()> {
        Box::pin(Self::run(*self, inputs, stop))
    }

    fn plan_only(mut self: Box<Self>, updates: Vec<Update>) -> Result<Vec<PlanText>, ObserveError> {
        for update in updates {
            self.take_in(Input::Source(update));
        }
        self.renew_holders(true);
        let mut changes = Changes::default();
        let names = self.tracker.services().map(|service| service.name.clone());
        changes.services.extend(names);
        self.look_for_schedulers(&changes, false);
        self.renew_contexts();
        let mut plans = Vec::new();
        for served in &mut self.served {
            served.update(&self.tracker, &changes);
            let Served { family, .. } = served;
            family.observe(&mut self.kernel, ObserveScope::Everything)?;
            plans.push(PlanText::of(family.family(), &family.planner.plan()));
        }
        Ok(plans)
    }

    fn write_settings(&mut self) -> (usize, Vec<String>) {
        // The first family manages what all share.
        let Some(Served { family, .. }) = self.served.first() else {
            return (0, Vec::new());
        };
        let plan = family.planner.settings();
        let report = self.kernel.apply(&plan);
        let failures = report.failures(&plan);
        let failures = failures.map(|(step, failure)| format!("{step}: {failure}"));
        (plan.len(), failures.collect())
    }
}
