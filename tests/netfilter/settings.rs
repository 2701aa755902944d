// SPDX-License-Identifier: Apache-2.0
//! Kernel settings, which are per network namespace.

use kube_proxy_rs::dataplane::sysctl::{SysctlError, Sysctls};

use kpr_testkit::isolated::{Need, Test, run};

pub(crate) const TESTS: &[Test] = &[
    (
        "a_setting_is_written_once",
        &[Need::Namespaces],
        written_once,
    ),
    (
        "a_setting_that_the_kernel_refuses_is_an_error",
        &[Need::Namespaces],
        refused,
    ),
];

const FORWARD: &str = "net/ipv4/ip_forward";

fn written_once() {
    let sysctls = Sysctls::default();
    let cat = || run("cat", &["/proc/sys/net/ipv4/ip_forward"]);
    run("sysctl", &["-qw", "net.ipv4.ip_forward=0"]);
    sysctls.ensure(FORWARD, "1").unwrap();
    assert_eq!(cat(), "1\n");
    sysctls.ensure(FORWARD, "1").unwrap();
    let missing = sysctls.ensure("net/ipv4/no_such_setting", "1").unwrap_err();
    assert!(missing.is_missing(), "{missing:?}");
}

fn refused() {
    let sysctls = Sysctls::default();
    let error = sysctls
        .ensure("net/ipv4/conf/lo/arp_ignore", "many")
        .unwrap_err();
    assert!(matches!(error, SysctlError::Refused { .. }), "{error:?}");
    // Memory limits are machine-wide: in a namespace they are read-only or absent.
    let error = sysctls.ensure("net/core/rmem_max", "1").unwrap_err();
    assert!(
        matches!(
            error,
            SysctlError::Permission { .. } | SysctlError::Missing { .. }
        ),
        "{error:?}"
    );
}
