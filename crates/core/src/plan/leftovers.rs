// SPDX-License-Identifier: Apache-2.0
//! PURE: what another mode or another kube-proxy left in the kernel, and how it is removed.

pub mod cleanup;
pub mod modes;
pub mod stale_rules;
pub mod teardown;

/// The name of the table of kube-proxy's nftables mode; each family has one.
pub const NFTABLES_TABLE: &str = "kube-proxy";
