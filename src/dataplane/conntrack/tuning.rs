// SPDX-License-Identifier: Apache-2.0
//! Reads and writes the kernel settings of connection tracking.

use std::collections::BTreeMap;

use crate::dataplane::sysctl::{SysctlError, Sysctls};
use kpr_core::plan::conntrack::tuning::{
    Setting, TCP_BE_LIBERAL, Tree, Tuning, Wanted, count_cpus,
};

/// A setting that has the wrong value and could not be written.
#[derive(Debug)]
pub struct Unwritable {
    pub setting: Setting,
    pub error: SysctlError,
}

/// The settings of this machine, or of a test.
#[derive(Clone, Debug)]
pub struct ConntrackSysctls {
    sysctls: Sysctls,
    sysfs: Sysctls,
}

impl Default for ConntrackSysctls {
    fn default() -> Self {
        Self::new(Sysctls::default(), Sysctls::new("/sys"))
    }
}

impl ConntrackSysctls {
    /// Below `/proc/sys` and `/sys`.
    pub const fn new(sysctls: Sysctls, sysfs: Sysctls) -> Self {
        Self { sysctls, sysfs }
    }

    /// Whether the kernel accepts packets outside of the TCP window; `false` if it is unknown.
    pub fn is_liberal(&self) -> bool {
        self.number(TCP_BE_LIBERAL).is_some_and(|value| value != 0)
    }

    /// Writes what differs. Returns the settings that now are as wanted, and those that could not
    /// be written.
    pub fn apply(&self, tuning: &Tuning) -> (Vec<Setting>, Vec<Unwritable>) {
        let cpus = self.cpus();
        let wanted = tuning.wanted(cpus);
        let present: BTreeMap<Setting, u64> = wanted
            .iter()
            .filter_map(|(setting, _)| Some((*setting, self.number(*setting)?)))
            .collect();
        let mut unwritable = Vec::new();
        for (setting, wanted) in tuning.unmet(cpus, &present) {
            if let Err(error) = self.write(setting, wanted) {
                unwritable.push(Unwritable { setting, error });
            }
        }
        let is_met = |setting: &Setting| !unwritable.iter().any(|lost| lost.setting == *setting);
        let met = wanted.into_iter().map(|(setting, _)| setting);
        (met.filter(is_met).collect(), unwritable)
    }

    fn write(&self, setting: Setting, wanted: Wanted) -> Result<(), SysctlError> {
        let value = wanted.value().to_string();
        match self.tree(setting.tree).ensure(setting.path, &value) {
            // The kernel rounds the number of buckets up to full pages.
            Err(SysctlError::NotKept { found, .. })
                if found.parse().is_ok_and(|found| wanted.is_met_by(found)) =>
            {
                Ok(())
            }
            result => result,
        }
    }

    fn number(&self, setting: Setting) -> Option<u64> {
        let text = self.tree(setting.tree).read(setting.path).ok()?;
        text.parse().ok()
    }

    const fn tree(&self, tree: Tree) -> &Sysctls {
        match tree {
            Tree::Sysctl => &self.sysctls,
            Tree::Sysfs => &self.sysfs,
        }
    }

    /// The processors of the machine, however few of them we may use.
    fn cpus(&self) -> u32 {
        let online = self.sysfs.read("devices/system/cpu/online").ok();
        online.and_then(|list| count_cpus(&list)).unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use kpr_core::plan::conntrack::tuning::{BUCKETS, MAX, UDP_TIMEOUT};

    fn machine(files: &[(Setting, &str)]) -> (tempfile::TempDir, ConntrackSysctls) {
        let root = tempfile::tempdir().unwrap();
        let place = |tree: Tree| {
            root.path().join(match tree {
                Tree::Sysctl => "proc-sys",
                Tree::Sysfs => "sys",
            })
        };
        let write = |path: &Path, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            &place(Tree::Sysfs).join("devices/system/cpu/online"),
            "0-7\n",
        );
        for (setting, text) in files {
            write(&place(setting.tree).join(setting.path), text);
        }
        let settings = ConntrackSysctls::new(
            Sysctls::new(place(Tree::Sysctl)),
            Sysctls::new(place(Tree::Sysfs)),
        );
        (root, settings)
    }

    #[test]
    fn one_that_cannot_be_written_does_not_stop_the_others() {
        let (_root, settings) = machine(&[(MAX, "65536\n"), (BUCKETS, "65536\n")]);
        let tuning = Tuning {
            max_per_core: Some(32_768),
            udp_timeout: Some(std::time::Duration::from_secs(30)),
            ..Tuning::default()
        };
        let (met, unwritable) = settings.apply(&tuning);
        assert_eq!(met, [MAX, BUCKETS]);
        assert_eq!(settings.number(MAX), Some(8 * 32_768));
        let [lost] = &unwritable[..] else {
            panic!("{unwritable:?}")
        };
        assert_eq!(lost.setting, UDP_TIMEOUT);
        assert_eq!(
            lost.error.to_string(),
            "kernel setting net/netfilter/nf_conntrack_udp_timeout does not exist"
        );
    }

    #[test]
    fn liberal_is_what_the_kernel_says() {
        for (text, is_liberal) in [("0\n", false), ("1\n", true), ("2", true), ("?", false)] {
            let (_root, settings) = machine(&[(TCP_BE_LIBERAL, text)]);
            assert_eq!(settings.is_liberal(), is_liberal, "{text:?}");
        }
        let (_root, settings) = machine(&[]);
        assert!(!settings.is_liberal());
    }
}
