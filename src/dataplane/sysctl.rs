// SPDX-License-Identifier: Apache-2.0
//! Kernel settings under `/proc/sys`: read, and written where they differ. `plan` decides which
//! values are wanted.

use std::io;
use std::path::{Component, Path, PathBuf};

use tracing::debug;

/// A setting could not be read or written. Keys are paths below `/proc/sys`, such as
/// `net/ipv4/ip_forward`.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    #[error("{key:?} is not a kernel setting")]
    InvalidKey { key: String },
    /// The kernel does not have it, its module is not loaded, or it does not exist in this network
    /// namespace.
    #[error("kernel setting {key} does not exist")]
    Missing { key: String },
    /// No permission, or `/proc/sys` is mounted read-only as in most unprivileged containers.
    #[error("no permission to write kernel setting {key}")]
    Permission {
        key: String,
        #[source]
        source: io::Error,
    },
    #[error("the kernel rejected {value:?} for setting {key}")]
    Refused {
        key: String,
        value: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot read kernel setting {key}")]
    Read {
        key: String,
        #[source]
        source: io::Error,
    },
    /// The write succeeded, but another value is read back.
    #[error("kernel setting {key} is {found:?} after {wanted:?} was written")]
    NotKept {
        key: String,
        wanted: String,
        found: String,
    },
}

impl SysctlError {
    /// Whether the kernel does not have the setting.
    pub const fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }
}

/// The settings below a directory.
#[derive(Clone, Debug)]
pub struct Sysctls {
    root: PathBuf,
}

impl Default for Sysctls {
    fn default() -> Self {
        Self::new("/proc/sys")
    }
}

impl Sysctls {
    /// Settings below `root`, which is `/proc/sys` except in tests.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The value, without white space around it; one space separates several numbers.
    pub fn read(&self, key: &str) -> Result<String, SysctlError> {
        let path = self.path(key)?;
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(canonical(&text)),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Err(SysctlError::Missing {
                key: key.to_owned(),
            }),
            Err(source) => Err(SysctlError::Read {
                key: key.to_owned(),
                source,
            }),
        }
    }

    /// Writes the value if the setting has another one, and reads it back.
    pub fn ensure(&self, key: &str, value: &str) -> Result<(), SysctlError> {
        let wanted = canonical(value);
        let before = self.read(key)?;
        if before == wanted {
            return Ok(());
        }
        let path = self.path(key)?;
        write(&path, &wanted).map_err(|source| refusal(key, &wanted, source))?;
        let found = self.read(key)?;
        if found != wanted {
            return Err(SysctlError::NotKept {
                key: key.to_owned(),
                wanted,
                found,
            });
        }
        debug!(key, value = wanted, before, "wrote kernel setting");
        Ok(())
    }

    fn path(&self, key: &str) -> Result<PathBuf, SysctlError> {
        let relative = Path::new(key);
        let inside = relative
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if key.is_empty() || !inside {
            return Err(SysctlError::InvalidKey {
                key: key.to_owned(),
            });
        }
        Ok(self.root.join(relative))
    }
}

/// One `write` without truncation or creation: `/proc/sys` takes a value whole.
fn write(path: &Path, value: &str) -> io::Result<()> {
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
    file.write_all(format!("{value}\n").as_bytes())
}

fn refusal(key: &str, value: &str, source: io::Error) -> SysctlError {
    let key = key.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => SysctlError::Missing { key },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            SysctlError::Permission { key, source }
        }
        _ => SysctlError::Refused {
            key,
            value: value.to_owned(),
            source,
        },
    }
}

fn canonical(text: &str) -> String {
    text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(content: &str) -> (tempfile::TempDir, Sysctls) {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("net/ipv4")).unwrap();
        std::fs::write(root.path().join("net/ipv4/ip_forward"), content).unwrap();
        let sysctls = Sysctls::new(root.path());
        (root, sysctls)
    }

    #[test]
    fn a_setting_with_the_value_is_not_written() {
        let (root, sysctls) = settings("1\n");
        let path = root.path().join("net/ipv4/ip_forward");
        // Writing would leave the canonical form behind.
        std::fs::write(&path, " 1 \n\n").unwrap();
        sysctls.ensure("net/ipv4/ip_forward", "1").unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), " 1 \n\n");
    }

    #[test]
    fn another_value_is_replaced() {
        let (_root, sysctls) = settings("0\n");
        sysctls.ensure("net/ipv4/ip_forward", "1").unwrap();
        assert_eq!(sysctls.read("net/ipv4/ip_forward").unwrap(), "1");
    }

    #[test]
    fn values_of_several_numbers_are_compared_number_by_number() {
        let (_root, sysctls) = settings("32768\t60999\n");
        let key = "net/ipv4/ip_forward";
        sysctls.ensure(key, "32768 60999").unwrap();
        assert_eq!(sysctls.read(key).unwrap(), "32768 60999");
    }

    #[test]
    fn a_missing_setting_is_named_by_its_key() {
        let (_root, sysctls) = settings("0\n");
        let error = sysctls.ensure("net/ipv4/vs/conntrack", "1").unwrap_err();
        assert!(error.is_missing());
        assert_eq!(
            error.to_string(),
            "kernel setting net/ipv4/vs/conntrack does not exist"
        );
    }

    #[test]
    fn a_value_that_is_not_kept_is_an_error() {
        // The file is longer than what is written over it, so that the rest remains.
        let (root, sysctls) = settings("0\n");
        let path = root.path().join("net/ipv4/ip_forward");
        std::fs::write(&path, "0000000000\n").unwrap();
        let error = sysctls.ensure("net/ipv4/ip_forward", "1").unwrap_err();
        assert!(matches!(error, SysctlError::NotKept { .. }), "{error:?}");
    }

    #[test]
    fn keys_cannot_leave_the_directory() {
        let (_root, sysctls) = settings("0\n");
        for key in ["", "/etc/passwd", "../x", "net/../../x"] {
            let error = sysctls.read(key).unwrap_err();
            assert!(
                matches!(error, SysctlError::InvalidKey { .. }),
                "{key}: {error:?}"
            );
        }
    }

    #[test]
    fn refusals_are_classified() {
        let of = |code| refusal("k", "v", io::Error::from_raw_os_error(code));
        assert!(matches!(of(libc::EACCES), SysctlError::Permission { .. }));
        assert!(matches!(of(libc::EPERM), SysctlError::Permission { .. }));
        assert!(matches!(of(libc::EROFS), SysctlError::Permission { .. }));
        assert!(matches!(of(libc::ENOENT), SysctlError::Missing { .. }));
        assert!(matches!(of(libc::EINVAL), SysctlError::Refused { .. }));
    }
}
