// SPDX-License-Identifier: Apache-2.0
//! `--cleanup`: observes the kernel, applies what `plan::leftovers::cleanup` decides, and reports
//! what is left. Continues after errors.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use tracing::{debug, info, warn};

use super::modes;
use crate::config::settings::Settings;
use crate::dataplane::client_sets::ClientSets;
use crate::dataplane::exec::Exec;
use crate::dataplane::iptables::{Backend, Backends, Iptables, IptablesError};
use crate::dataplane::kernel::Kernel;
use crate::dataplane::links::Links;
use crate::dataplane::node::{self, NodeKernel};
use crate::dataplane::sysctl::Sysctls;
use crate::telemetry::ErrorChain;
use kpr_core::model::IpFamily;
use kpr_core::plan::leftovers::cleanup::{self, Facts, Obstacle};
use kpr_core::plan::ruleset::Table;
use kpr_core::plan::{Outcome, Plan, Planner, Step};

/// What could not be removed, in words.
type Left = Vec<String>;

/// Removes what kube-proxy or we made. Returns what is left of it; nothing, if all went well.
pub(super) fn run(settings: &Settings, exec: &Arc<dyn Exec>) -> anyhow::Result<Left> {
    let mut left = Left::new();
    let mut links = Links::open().context("cannot use route netlink")?;
    let facts = Facts {
        node_addresses: node::node_addresses(&mut links)?,
        exclude_cidrs: settings.ipvs.exclude_cidrs.clone(),
        node_port_range: settings.node_port_range,
    };
    let mut ipvs = match modes::leftovers(&BTreeMap::new(), exec) {
        Ok(ipvs) => ipvs,
        Err(error) => {
            left.push(format!("{error:#}"));
            None
        }
    };
    // Read before the first of the plans takes away what the others go by.
    let mut observed = Vec::new();
    if let Some(kernel) = &mut ipvs {
        for family in IpFamily::ALL {
            observed.push((family, kernel.observe(family)?));
        }
        for (_, state) in &observed {
            apply(kernel, &cleanup::servers(state, &facts), &mut left);
        }
    }
    let mut obstacles = Vec::new();
    let mut client_sets = BTreeMap::new();
    let mut kernels = backends(exec, &mut left)?;
    for (kernel, families) in &mut kernels {
        for family in families.iter().copied() {
            match kernel.observe(family) {
                Ok(state) => {
                    client_sets.extend(state.sets.clone());
                    let (plan, used) = cleanup::rules(&state, family);
                    apply(kernel, &plan, &mut left);
                    obstacles.extend(used);
                }
                Err(error) => left.push(ErrorChain(&error).to_string()),
            }
        }
    }
    // Rules of all backends may have used them.
    if let Some((kernel, _)) = kernels.first_mut() {
        apply(kernel, &cleanup::client_sets(&client_sets), &mut left);
    }
    if let Some(kernel) = &mut ipvs {
        for (family, state) in &observed {
            apply(
                kernel,
                &cleanup::sets(state, *family, &obstacles),
                &mut left,
            );
        }
    }
    // A set in use elsewhere is an obstacle only if it exists.
    let is_present = |obstacle: &Obstacle| match obstacle {
        Obstacle::Chain(_) => true,
        Obstacle::Set { set, .. } => observed
            .iter()
            .any(|(_, s)| s.all_sets(set).next().is_some()),
    };
    left.extend(
        obstacles
            .iter()
            .filter(|o| is_present(o))
            .map(ToString::to_string),
    );
    Ok(left)
}

/// Each iptables of this machine, with the families that it has here: the rules of a former
/// kube-proxy may be in the one that we would not choose.
fn backends(
    exec: &Arc<dyn Exec>,
    left: &mut Left,
) -> anyhow::Result<Vec<(NodeKernel, Vec<IpFamily>)>> {
    let mut kernels = Vec::new();
    let mut errors = Vec::new();
    for backend in [Backend::Nft, Backend::Legacy] {
        let backends = match Backends::detect(&**exec, Some(backend)) {
            Ok(backends) => backends,
            Err(IptablesError::NotInstalled { .. }) => continue,
            Err(error) => {
                left.push(ErrorChain(&error).to_string());
                continue;
            }
        };
        let mut usable = BTreeMap::new();
        for family in IpFamily::ALL {
            let iptables = Iptables::new(exec.clone(), backends.programs(family));
            match iptables.save(&[Table::Mangle, Table::Nat, Table::Filter, Table::Security]) {
                Ok(_) => {
                    usable.insert(family, iptables);
                }
                Err(error) => errors.push((backend, family, error)),
            }
        }
        let families = usable.keys().copied().collect::<Vec<_>>();
        if !families.is_empty() {
            let links = Links::open().context("cannot use route netlink")?;
            let kernel = NodeKernel::new(links, Sysctls::new("/proc/sys"), usable, exec.clone())
                .with_client_sets(ClientSets::open().ok());
            kernels.push((kernel, families));
        }
    }
    // A kernel may lack one of the two, or IPv6; it does not lack both for IPv4.
    for (backend, family, error) in errors {
        let error = ErrorChain(&error).to_string();
        if kernels.is_empty() {
            left.push(error);
        } else {
            debug!(%backend, %family, error, "iptables backend not available");
        }
    }
    Ok(kernels)
}

/// Makes the steps and notes those that failed.
fn apply<P: Planner>(kernel: &mut impl Kernel<P>, plan: &Plan<P::Step>, left: &mut Left) {
    if plan.is_empty() {
        return;
    }
    let report = kernel.apply(plan);
    info!(
        steps = plan.len(),
        failed = report.failures(plan).count(),
        "cleanup applied"
    );
    for (step, outcome) in plan.steps().zip(&report.outcomes) {
        match outcome {
            Outcome::Done => debug!(%step, "removed"),
            Outcome::Failed(failure) => {
                warn!(step = in_short(step), error = %failure, "failed to remove");
                left.push(format!("{}: {failure}", in_short(step)));
            }
            Outcome::NotTried => {
                left.push(format!(
                    "{}: not tried after another failure",
                    in_short(step)
                ));
            }
        }
    }
}

/// A batch of rules may have thousands of lines; its failure names the one that matters.
fn in_short(step: &impl Step) -> String {
    match step.batch() {
        Some(batch) => format!("edit {} rules of {}", batch.edits.len(), batch.family),
        None => step.to_string(),
    }
}
