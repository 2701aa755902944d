// SPDX-License-Identifier: Apache-2.0
//! Which of the kernel settings that an operator asks for this node can have.

use std::collections::BTreeMap;

use crate::app::modes::Opening;
use crate::dataplane::sysctl::Sysctls;
use kpr_core::plan::ipvs::sysctl::{Cpus, EST_CPULIST};

/// Those that the kernel has, with as much of their value as it would keep. The module `ip_vs` must
/// be loaded.
pub(super) fn possible(opening: &Opening<'_>) -> BTreeMap<&'static str, String> {
    let sysctls = Sysctls::new("/proc/sys");
    let mut possible = BTreeMap::new();
    for (key, value) in &opening.settings.ipvs.sysctls {
        let is_there = !sysctls.read(key).is_err_and(|error| error.is_missing());
        let value = match *key {
            EST_CPULIST => own_cpus(value),
            _ => Some(value.clone()),
        };
        let value = value.filter(|_| is_there);
        opening.observer.kernel_capability(key, value.is_some());
        possible.extend(value.map(|value| (*key, value)));
    }
    possible
}

/// Those of the CPUs that this process may run on: the kernel leaves out all others
/// (`ipvs_proc_est_cpumask_set`). None would stop its estimation.
fn own_cpus(wanted: &str) -> Option<String> {
    let wanted: Cpus = wanted.parse().ok()?;
    let cpus = match allowed() {
        Some(allowed) => wanted.within(&allowed),
        None => wanted,
    };
    (!cpus.is_empty()).then(|| cpus.to_string())
}

fn allowed() -> Option<Cpus> {
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    let mut lines = status.lines();
    let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    list.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_that_are_not_there_are_left_out() {
        let all = allowed().unwrap().to_string();
        assert_eq!(own_cpus("0-8191"), Some(all));
        assert_eq!(own_cpus("8191"), None);
    }
}
