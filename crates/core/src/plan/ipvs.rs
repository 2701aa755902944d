// SPDX-License-Identifier: Apache-2.0
//! PURE: IPVS mode: virtual servers, sets, addresses and static rules.
//!
//! ```text
//! ServicePort + endpoints -> port_objects -> desired (refcounted union) --+
//!                                                                         +-> diff -> Plan
//! observed kernel, reports -> state (Believed) ---------------------------+
//! ```

pub mod desired;
pub mod diff;
pub mod mark;
pub mod marks;
pub mod nft_rules;
pub mod object;
pub mod pass;
pub mod planner;
pub mod port_objects;
pub mod prerequisites;
pub mod ramps;
pub mod set;
pub mod set_aside;
pub mod state;
pub mod static_rules;
pub mod step;
pub mod sysctl;

pub use planner::Planner;
pub use state::State;
pub use step::{Phase, Step};

/// Ordered steps of this mode.
pub type Plan = crate::plan::Plan<Step>;
