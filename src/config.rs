// SPDX-License-Identifier: Apache-2.0
//! Flags and the KubeProxyConfiguration file: what kube-proxy takes, taken the same way.

pub mod duration;
pub mod settings;
pub mod types;

pub use settings::{
    ClientSettings, ConntrackSettings, IpvsSettings, IpvsTimeouts, LogFormat, LogSettings, Notice,
    ProxyMode, Settings, SourceSettings, SyncSettings,
};
