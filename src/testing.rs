// SPDX-License-Identifier: Apache-2.0
//! For tests only: documents that are made from the code.

use std::path::Path;

/// Fails unless a file of the repository has that text. With `UPDATE_GOLDEN` it is written instead.
pub(crate) fn document_is(path: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, text).unwrap();
    }
    let there = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        there == text,
        "{path} is not as the code: run hack/update-golden.sh and look at the difference"
    );
}
