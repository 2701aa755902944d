// SPDX-License-Identifier: Apache-2.0
//! PURE: Services and EndpointSlices as kube-proxy understands them.
//!
//! `source` turns API objects into [`Service`] and [`EndpointSlice`] and sends them as [`Event`]s.
//! The [`Tracker`] keeps them and reports which Services changed. `plan` reads a Service's
//! [`ServicePort`]s and [`Endpoint`]s and selects with [`topology`] which of those are used.
//! Nothing here reads a clock, a socket or a file.

pub mod address;
pub mod budget;
pub mod duration;
pub mod endpoint;
pub mod holders;
pub mod ipvs_options;
pub mod name;
pub mod net;
pub mod node;
pub mod node_info;
pub mod port_range;
pub mod proxy_mode;
pub mod service;
pub mod service_port;
pub mod service_view;
pub mod slices;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod topology;
pub mod tracker;
pub mod weights;

pub use budget::{Budget, Cut};
pub use duration::GoDuration;
pub use endpoint::{Endpoint, EndpointSlice, NodeHint, SliceEndpoint, SlicePort};
pub use holders::{Holder, Holders};
pub use ipvs_options::IpvsOptions;
pub use name::{ServiceName, ServicePortName, SliceName};
pub use net::{IpFamily, Protocol};
pub use node_info::{NodeClaims, NodeInfo};
pub use port_range::PortRange;
pub use proxy_mode::ProxyMode;
pub use service::{PortSpec, Service};
pub use service_port::ServicePort;
pub use service_view::ServiceView;
pub use tracker::{Changes, Event, Tracker};
pub use weights::Weights;
