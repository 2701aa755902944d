// SPDX-License-Identifier: Apache-2.0
//! PURE: what iptables mode wants in the kernel, and the edits that put it there.
//!
//! ```text
//! ServicePort + endpoints -> port_rules (chains, frontends) -> desired (claims -> trees) -+
//!                                                                                         +-> planner -> Plan
//! observed rules, reports -> believed (a digest of each chain) ---------------------------+
//! ```
//!
//! The layout differs from kube-proxy's in two ways; the behaviour does not:
//! - [`tree`]: a packet finds its Service by branching on prefixes instead of walking all Services;
//! - [`port_rules`]: without affinity an endpoint is one rule of `KUBE-SVC-*`. Hairpin traffic is
//!   detected once, in `KUBE-HAIRPIN`, and not by a rule for each endpoint.

pub mod affinity;
pub mod believed;
pub mod desired;
pub mod name;
pub mod parts;
pub mod planner;
pub mod port_rules;
pub mod prerequisites;
mod same_names;
pub mod state;
pub mod static_rules;
pub mod step;
pub mod syntax;
pub mod tree;
pub mod turns;

#[cfg(test)]
mod tests;

pub use planner::Planner;
pub use state::{Sets, Settings, State};
pub use step::{Phase, Step};

/// Ordered steps of this mode.
pub type Plan = crate::plan::Plan<Step>;
