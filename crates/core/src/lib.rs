// SPDX-License-Identifier: Apache-2.0
//! What kube-proxy-rs decides, without doing any of it: [`model`] turns Kubernetes' objects into
//! merged Services and endpoints, [`plan`] turns those into kernel objects and the steps that make
//! them.

pub mod model;
pub mod plan;
