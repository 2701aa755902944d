// SPDX-License-Identifier: Apache-2.0
//! PURE: what another mode or another kube-proxy left in the kernel, and how it goes.

pub mod cleanup;
pub mod modes;
pub mod stale_rules;
pub mod teardown;

/// The name of the tables of kube-proxy's nftables mode, one for each family.
pub const NFTABLES_TABLE: &str = "kube-proxy";
