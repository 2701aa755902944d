// SPDX-License-Identifier: Apache-2.0
//! The decisions of kube-proxy-rs, without any I/O: [`model`] turns Kubernetes objects into merged
//! Services and endpoints, and [`plan`] turns those into kernel objects and the steps that create
//! them.

pub mod model;
pub mod plan;
