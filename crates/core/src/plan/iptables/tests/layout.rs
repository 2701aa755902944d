// SPDX-License-Identifier: Apache-2.0
//! The rules of one Service, in full.

use crate::model::Protocol;
use crate::plan::iptables::name;

/// Names that kube-proxy v1.37.2 generated.
#[test]
fn hashes_are_those_of_kube_proxy() {
    assert_eq!(
        name::service_hash("default/cip:p", Protocol::Tcp),
        "CFP36WQJPWRYV3QI"
    );
    assert_eq!(
        name::service_hash("default/np", Protocol::Tcp),
        "LDATH6LIB7VCFHLW"
    );
    let endpoint = "10.1.0.5:8080".parse().unwrap();
    let chain = name::endpoint_chain("default/cip:p", Protocol::Tcp, endpoint);
    assert_eq!(chain.as_str(), "KUBE-SEP-7E5UZQT3HT6ASWD5");
}
