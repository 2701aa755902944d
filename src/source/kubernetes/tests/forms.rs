// SPDX-License-Identifier: Apache-2.0
//! The same tests in both forms of objects.

use std::cell::Cell;

use super::Encoding;

thread_local! {
    /// What [`super::Fixture::new`] asks for.
    pub(super) static ENCODING: Cell<Encoding> = const { Cell::new(Encoding::Protobuf) };
}

/// Runs a test with JSON.
pub(super) fn in_json(test: fn()) {
    struct Back;
    impl Drop for Back {
        fn drop(&mut self) {
            ENCODING.set(Encoding::Protobuf);
        }
    }
    ENCODING.set(Encoding::Json);
    let _back = Back;
    test();
}

/// Has tests for JSON of tests that do not depend on the form.
macro_rules! also_in_json {
    ($($test:ident)*) => {
        mod in_json {
            $(#[test]
            fn $test() {
                crate::source::kubernetes::tests::forms::in_json(super::$test);
            })*
        }
    };
}
pub(super) use also_in_json;
