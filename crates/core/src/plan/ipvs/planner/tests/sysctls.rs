// SPDX-License-Identifier: Apache-2.0
//! Kernel settings that an operator asks for.

use super::*;
use crate::plan::ipvs::sysctl::{EST_NICE, RUN_ESTIMATION};
use crate::plan::testing::fake::Fault;

const NICE: &str = "set sysctl net/ipv4/vs/est_nice = 5";

/// A proxy that has programmed one Service and was asked for two settings.
fn asked() -> (Proxy, Vec<String>) {
    let context = Context {
        sysctls: [(RUN_ESTIMATION, "1"), (EST_NICE, "5")]
            .map(|(key, value)| (key, value.to_owned()))
            .into(),
        ..context(IpFamily::V4)
    };
    let tracker = tracker(vec![service("ns/web").port(80)], Vec::new());
    let mut proxy = Proxy::start(context, tracker, State::default());
    let refused = |step: &Step| (step.to_string() == NICE).then_some(Fault::Refused);
    let plan = proxy.try_sync(refused);
    (proxy, lines(&plan))
}

#[test]
fn they_are_written_and_drift_is_repaired() {
    let (mut proxy, first) = asked();
    let is_asked = |line: &&String| line.contains("/vs/est_nice") || line.contains("estimation");
    let about: Vec<&String> = first.iter().filter(is_asked).collect();
    assert_eq!(
        about,
        [NICE, "set sysctl net/ipv4/vs/run_estimation = 1"],
        "in the first plan"
    );
    assert_eq!(lines(&proxy.sync()), [NICE]);
    let sysctls = &mut proxy.kernel.state.node.sysctls;
    sysctls.insert(EST_NICE, "0".to_owned());
    proxy.observe();
    assert_eq!(lines(&proxy.sync()), [NICE]);
}

#[test]
fn one_that_the_kernel_refuses_is_tried_again_in_audits_only() {
    let (mut proxy, _) = asked();
    let refuse = |step: &Step| matches!(step, Step::SetSysctl { .. }).then_some(Fault::Refused);
    assert!(proxy.planner.refused_sysctls().is_empty() && proxy.planner.is_pending());
    assert_eq!(lines(&proxy.try_sync(refuse)), [NICE]);
    assert_eq!(proxy.planner.refused_sysctls(), [EST_NICE].into());
    assert!(!proxy.planner.is_pending());
    assert!(proxy.planner.set_aside().is_empty(), "no Service waits");
    assert!(proxy.sync().is_empty());
    proxy.observe();
    assert_eq!(lines(&proxy.try_sync(refuse)), [NICE]);
    assert!(!proxy.planner.is_pending());
    proxy.observe();
    assert_eq!(lines(&proxy.sync()), [NICE]);
    assert!(proxy.planner.refused_sysctls().is_empty());
}
