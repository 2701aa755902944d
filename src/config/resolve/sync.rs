// SPDX-License-Identifier: Apache-2.0
//! The exchange of connections with other nodes: flags of ours, for which the file has no place.

use std::net::IpAddr;

use super::{Errors, Flags};
use kpr_core::plan::ipvs::object::SyncDaemon;

const GROUP: IpAddr = ipvs_netlink::SyncDaemon::GROUP;
const PORT: u16 = ipvs_netlink::SyncDaemon::PORT;

/// `IFNAMSIZ` without the NUL.
const INTERFACE_MAX: usize = 15;

/// The sync daemons; `None` without an interface. Wrong values are named in either case.
pub(super) fn daemons(flags: &Flags, errors: &mut Errors) -> Option<SyncDaemon> {
    let mut number = |path: &str, value: Option<i32>, default: u16, range: (u16, u16)| {
        let Some(value) = value else {
            return default;
        };
        let (least, most) = range;
        let valid = u16::try_from(value).ok();
        let valid = valid.filter(|valid| (least..=most).contains(valid));
        if valid.is_none() {
            let message = format!("must be {least} to {most}, inclusive");
            errors.invalid(path, value, &message);
        }
        valid.unwrap_or(default)
    };
    let sync_id = number("--ipvs-sync-id", flags.ipvs_sync_id, 1, (0, 255));
    let port = number(
        "--ipvs-sync-port",
        flags.ipvs_sync_port,
        PORT,
        (1, u16::MAX),
    );
    let ttl = number("--ipvs-sync-ttl", flags.ipvs_sync_ttl, 1, (1, 255));
    // 0 leaves it to the kernel, which raises what is less than this.
    let length = flags.ipvs_sync_max_length.filter(|length| *length != 0);
    let max_length = number("--ipvs-sync-max-length", length, 0, (1024, 65_487));
    let mut group = GROUP;
    if let Some(text) = &flags.ipvs_sync_group {
        match text.parse() {
            Ok(address @ IpAddr::V4(v4)) if v4.is_multicast() => group = address,
            Ok(address @ IpAddr::V6(v6)) if v6.is_multicast() => group = address,
            _ => {
                let message = "must be a multicast address such as 224.0.0.81 or ff02::81";
                errors.invalid_text("--ipvs-sync-group", text, message);
            }
        }
    }
    let interface = flags.ipvs_sync_interface.as_deref().unwrap_or_default();
    let is_odd = |c: char| c == '/' || c.is_whitespace() || c.is_control();
    if interface.len() > INTERFACE_MAX || interface.contains(is_odd) {
        let message = "must be the name of an interface, of at most 15 bytes";
        errors.invalid_text("--ipvs-sync-interface", interface, message);
    }
    (!interface.is_empty()).then(|| SyncDaemon {
        interface: interface.into(),
        link: None,
        sync_id: sync_id.into(),
        group,
        port,
        ttl: u8::try_from(ttl).unwrap_or(u8::MAX),
        max_length,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Command};

    fn parsed(flags: &[&str]) -> Result<Option<SyncDaemon>, String> {
        let arguments = ["kube-proxy-rs", "--proxy-mode=ipvs"].iter().chain(flags);
        match config::parse(arguments.map(Into::into)) {
            Ok(Command::Run(settings)) => Ok(settings.ipvs.sync),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.report()),
        }
    }

    #[test]
    fn an_interface_starts_daemons_and_the_rest_has_the_kernels_defaults() {
        assert_eq!(parsed(&[]), Ok(None));
        assert_eq!(parsed(&["--ipvs-sync-id=9"]), Ok(None));
        let other_mode = ["--ipvs-sync-interface=eth1", "--proxy-mode=iptables"];
        assert_eq!(parsed(&other_mode), Ok(None));
        let default = SyncDaemon {
            interface: "eth1".into(),
            link: None,
            sync_id: 1,
            group: GROUP,
            port: 8848,
            ttl: 1,
            max_length: 0,
        };
        assert_eq!(
            parsed(&["--ipvs-sync-interface=eth1"]),
            Ok(Some(default.clone()))
        );
        let all = parsed(&[
            "--ipvs-sync-interface=eth1",
            "--ipvs-sync-id=0",
            "--ipvs-sync-group=ff02::9",
            "--ipvs-sync-port=9000",
            "--ipvs-sync-ttl=255",
            "--ipvs-sync-max-length=1400",
        ]);
        let wanted = SyncDaemon {
            sync_id: 0,
            group: "ff02::9".parse().unwrap(),
            port: 9000,
            ttl: 255,
            max_length: 1400,
            ..default
        };
        assert_eq!(all, Ok(Some(wanted)));
    }

    #[test]
    fn wrong_values_are_named() {
        for (flag, value) in [
            ("--ipvs-sync-interface", "eth0/1"),
            ("--ipvs-sync-interface", "an-interface-name"),
            ("--ipvs-sync-id", "256"),
            ("--ipvs-sync-id", "-1"),
            ("--ipvs-sync-group", "10.0.0.1"),
            ("--ipvs-sync-group", "all"),
            ("--ipvs-sync-port", "0"),
            ("--ipvs-sync-port", "65536"),
            ("--ipvs-sync-ttl", "0"),
            ("--ipvs-sync-max-length", "1000"),
            ("--ipvs-sync-max-length", "65488"),
        ] {
            let error = parsed(&[&format!("{flag}={value}")]).unwrap_err();
            assert!(error.contains(flag) && error.contains(value), "{error}");
        }
    }
}
