// SPDX-License-Identifier: Apache-2.0
//! The kernel's side: observe what it holds, apply a plan. Decides nothing.

pub mod conntrack;
pub mod exec;
pub mod failure;
pub mod flows;
pub mod iptables;
pub mod kernel;
pub mod links;
pub mod modes;
pub mod nfacct;
pub mod nftables;
pub mod node;
mod notifications;
mod rules;
pub mod sysctl;
