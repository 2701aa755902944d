// SPDX-License-Identifier: Apache-2.0
//! PURE: connection tracking: its kernel settings, and the stale flows to delete.

pub mod flows;
pub mod tuning;
