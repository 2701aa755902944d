// SPDX-License-Identifier: Apache-2.0
//! Connection tracking: its kernel settings. Which values are wanted is the planner's business.

pub mod tuning;
