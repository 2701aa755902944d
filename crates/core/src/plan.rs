// SPDX-License-Identifier: Apache-2.0
//! PURE: the desired state of the kernel, and the steps that bring it about.
//!
//! ```text
//! changed Services -> Desired ----------+
//!                                       +-> compare -> Plan -> (kernel) -> Report
//! observed kernel, reports -> Believed -+
//! ```
//!
//! Each mode has a planner that keeps these for one family: [`ipvs::planner::Planner`] and
//! [`iptables::planner::Planner`]. Nothing here talks to a kernel.

pub mod by_port;
pub mod claim;
pub mod compact;
pub mod conntrack;
pub mod context;
pub mod cuts;
pub mod drift;
pub mod explain;
pub mod iptables;
pub mod ipvs;
pub mod leftovers;
pub mod mode;
pub mod order;
pub mod prerequisites;
pub mod report;
pub mod ruleset;
pub mod shown;
pub mod step;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod unmet;

pub use context::{Context, Hairpin, IptablesContext, IpvsRules, KernelVersion};
pub use drift::Drift;
pub use mode::Planner;
pub use report::{Failure, FailureKind, Outcome, Report};
pub use step::{Plan, Step};
