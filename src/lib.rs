// SPDX-License-Identifier: Apache-2.0
//! kube-proxy-rs: Services and EndpointSlices in, kernel state out.
//!
//! ```text
//! API server | files -> source -> model::Tracker -> plan (Desired - Believed = Plan)
//!   -> dataplane (apply; Report) -> reconcile -> metrics, health, retry
//! kernel -> dataplane (observe) -> Believed
//! ```
//!
//! `model` and `plan` are a crate of their own, `kpr-core`, which can do no IO.

pub mod app;
pub mod clock;
pub mod config;
pub mod dataplane;
pub mod descriptors;
pub mod error_chain;
pub mod events;
pub mod health;
pub mod line_limit;
pub mod loopback;
pub mod memory;
pub mod metrics;
pub mod reconcile;
pub mod reported_once;
pub mod shortened;
pub mod source;
mod task;
pub mod telemetry;
mod yaml;

#[cfg(test)]
mod testing;
