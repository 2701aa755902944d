// SPDX-License-Identifier: Apache-2.0
//! Messages of IPVS: services, destinations, statistics, time-outs, information.
#![no_main]

use ipvs_netlink::{AddressFamily, DestinationStatus, Info, IpvsMessage, ServiceStatus, Timeouts};
use libfuzzer_sys::fuzz_target;

// From `struct genlmsghdr` on.
fuzz_target!(|payload: &[u8]| {
    let Ok(message) = IpvsMessage::parse(payload) else {
        return;
    };
    if let Some(attributes) = message.service() {
        drop(ServiceStatus::from_attributes(attributes));
    }
    if let Some(attributes) = message.destination() {
        drop(DestinationStatus::from_attributes(
            attributes,
            AddressFamily::Inet6,
        ));
    }
    drop(Info::from_attributes(&message.attributes));
    Timeouts::from_attributes(&message.attributes);
    // What was understood is written back and means the same.
    let written = message.payload().expect("it fitted before");
    assert_eq!(IpvsMessage::parse(&written).as_ref(), Ok(&message));
});
