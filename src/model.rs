// SPDX-License-Identifier: Apache-2.0
//! PURE: Services and EndpointSlices as kube-proxy understands them.

pub mod net;
