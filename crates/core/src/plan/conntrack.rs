// SPDX-License-Identifier: Apache-2.0
//! PURE: what connection tracking needs: kernel settings, and flows that must end.

pub mod flows;
pub mod tuning;
