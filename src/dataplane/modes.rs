// SPDX-License-Identifier: Apache-2.0
//! The kernel as each mode uses it: steps become messages or batches, answers become outcomes.

pub mod iptables;
pub mod ipvs;
