// SPDX-License-Identifier: Apache-2.0
//! Tests with real packets that several programs run, each with the mode and the kernel that it
//! has.

pub mod changes;
pub mod flows;
pub mod lifecycle;
pub mod neighbours;
pub mod rollout;
pub mod seen;
