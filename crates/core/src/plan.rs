// SPDX-License-Identifier: Apache-2.0
//! PURE: what the kernel should hold, and the steps that get it there.
//!
//! ```text
//! ServicePort + endpoints -> fragment -> desired (refcounted union) --+
//!                                                                     +-> diff -> Plan -> check
//! observed kernel, reports -> state (Believed) -----------------------+
//! ```
//!
//! [`planner::Planner`] holds these for one family. Nothing here talks to a kernel.

#[cfg(any(test, feature = "testing"))]
pub mod check;
pub mod claim;
pub mod cleanup;
pub mod compact;
pub mod conntrack;
pub mod context;
pub mod desired;
pub mod diff;
pub mod drift;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
pub mod finding;
pub mod fragment;
pub mod iptables;
pub mod mark;
pub mod marks;
pub mod mode;
pub mod object;
pub mod owner;
pub mod planner;
pub mod prerequisites;
pub mod remains;
pub mod report;
pub mod retire;
pub mod rules;
pub mod ruleset;
pub mod set;
pub mod state;
pub mod step;
pub mod sysctl;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod view;

pub use context::{Context, Hairpin, IptablesContext, KernelVersion};
pub use drift::Drift;
pub use planner::Planner;
pub use prerequisites::Prerequisites;
pub use report::{Failure, FailureKind, Outcome, Report};
pub use state::State;
pub use step::{Plan, Step};
