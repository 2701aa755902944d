// SPDX-License-Identifier: Apache-2.0
//! Access to the kernel: observes its state and applies plans. Makes no decisions.

pub mod client_sets;
pub mod conntrack;
pub mod exec;
pub mod failure;
pub mod flows;
pub mod iptables;
pub mod kernel;
pub mod links;
pub mod modes;
pub mod network;
pub mod nfacct;
pub mod nftables;
pub mod node;
pub mod own_table;
mod rules;
pub mod surroundings;
pub mod sysctl;
