// SPDX-License-Identifier: Apache-2.0
//! What this machine's kernel can do. Tests that it cannot run are reported as ignored, never as
//! passed.

use std::path::Path;

use crate::namespace::Namespace;

/// Why IPVS mode cannot be tested here; `None`: it can.
pub fn lacks_ipvs() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root");
    }
    let is_loaded = || Path::new("/proc/net/ip_vs").exists();
    // Only asked whether it could be loaded: loading it is the proxy's business.
    let is_loadable = || {
        Namespace::current()
            .and_then(|here| here.run("modprobe", &["-n", "-q", "ip_vs"]))
            .is_ok()
    };
    if is_loaded() || is_loadable() {
        None
    } else {
        Some("needs a kernel with ip_vs")
    }
}

/// Whether a test that cannot run is a failure.
pub fn is_required(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty() && value != "0")
}
