// SPDX-License-Identifier: Apache-2.0
//! PURE: what another mode or another kube-proxy left in the kernel, and how it goes.

pub mod cleanup;
pub mod modes;
pub mod stale_rules;
pub mod teardown;
