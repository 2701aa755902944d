// SPDX-License-Identifier: Apache-2.0
//! Tests of iptables mode without a kernel.

mod affinity;
mod budget;
mod claims;
mod isolation;
mod layout;
mod parts;
mod planner;
mod proxy;
mod same_names;
mod trace;
mod tracing;
mod tree;
mod unread;
