// SPDX-License-Identifier: Apache-2.0
//! Which IPVS schedulers the kernel has without loading a module. Netlink cannot be asked: to name
//! a scheduler is to load it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::LazyLock;

use kpr_core::model::ipvs_options::Scheduler;

/// Those that are no modules but built into the kernel: they have symbols.
static BUILT_IN: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let symbols = File::open("/proc/kallsyms").map(BufReader::new);
    symbols.map(built_in).unwrap_or_default()
});

/// Whether a scheduler is loaded or built in.
pub(super) fn is_loaded(scheduler: Scheduler) -> bool {
    let name = scheduler.as_str();
    Path::new("/sys/module")
        .join(format!("ip_vs_{name}"))
        .exists()
        || BUILT_IN.contains(name)
}

/// The schedulers that have a symbol which belongs to no module. Each defines the function
/// `ip_vs_NAME_schedule` (`net/netfilter/ipvs/ip_vs_*.c`).
fn built_in(symbols: impl BufRead) -> BTreeSet<String> {
    let lines = symbols.lines().map_while(Result::ok);
    let names = lines.filter_map(|line| {
        let symbol = line.split(' ').nth(2)?;
        let name = symbol.strip_prefix("ip_vs_")?.strip_suffix("_schedule")?;
        Some(name.to_owned())
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_of_modules_do_not_count() {
        let symbols = "\
0000000000000000 T ip_vs_schedule
0000000000000000 t ip_vs_rr_schedule
0000000000000000 t ip_vs_rr_init_svc
0000000000000000 t ip_vs_twos_schedule
0000000000000000 t ip_vs_mh_schedule\t[ip_vs_mh]
";
        let found = built_in(symbols.as_bytes());
        assert_eq!(found, ["rr", "twos"].map(str::to_owned).into());
    }
}
