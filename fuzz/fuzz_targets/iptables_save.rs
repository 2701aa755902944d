// SPDX-License-Identifier: Apache-2.0
//! The text of `iptables-save`.
#![no_main]

use kpr_core::plan::ruleset::Ruleset;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(ruleset) = Ruleset::parse(text) else {
        return;
    };
    for rule in ruleset.chains.values().flatten() {
        let target = rule.target().map_or(0, str::len);
        assert!(target + rule.sets().map(str::len).sum::<usize>() <= rule.as_str().len());
    }
    // What we would write is what we have read.
    assert_eq!(Ruleset::parse(&ruleset.render()), Ok(ruleset));
});
