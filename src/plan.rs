// SPDX-License-Identifier: Apache-2.0
//! PURE: what the kernel should hold, and the steps that get it there.
pub mod ruleset;
