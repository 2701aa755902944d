// SPDX-License-Identifier: Apache-2.0
//! Answers of the API server, to lists and to watches, in protobuf and JSON, compressed or not.
//! What is between may change any of them, and any user of the cluster writes most objects.
#![no_main]

use kube_proxy_rs::source::kubernetes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| kubernetes::fuzz(bytes));
