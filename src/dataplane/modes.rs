// SPDX-License-Identifier: Apache-2.0
//! The kernel as each mode uses it: turns steps into messages or batches, and answers into
//! outcomes.

pub mod iptables;
pub mod ipvs;
