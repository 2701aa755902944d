// SPDX-License-Identifier: Apache-2.0
//! The text of `/proc/net/ip_vs`.
#![no_main]

use ipvs_netlink::Listing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Ok(listing) = Listing::new(text) {
        // Every service takes a line, so there are no more of them than lines.
        let lines = text.split(|byte| *byte == b'\n').count();
        assert!(listing.count() <= lines);
    }
});
