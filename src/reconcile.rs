// SPDX-License-Identifier: Apache-2.0
//! The loop: trigger, observe, plan, apply, report.
