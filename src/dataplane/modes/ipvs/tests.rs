// SPDX-License-Identifier: Apache-2.0
//! Which failures the steps of a batch get, with scripted peers in place of the kernel.

use std::io;
use std::sync::Arc;

use super::*;
use crate::clock::Clock;
use crate::dataplane::exec::System;
use crate::dataplane::links::Links;
use crate::dataplane::sysctl::Sysctls;
use kpr_core::plan::ipvs::Phase;
use kpr_core::plan::ipvs::object::{Forwarding, RealServer};
use kpr_core::plan::ipvs::set::{SetEntry, SetId};
use kpr_core::plan::testing::{rs, tcp};
use netlink_pipeline::scripted::{Header, Script, Scripted, message, verdict};

type Answers = Vec<io::Result<Vec<u8>>>;

/// The number of the generic netlink family, which the kernel assigns at each load.
const FAMILY: u16 = 0x23;

/// The kernel answers all requests of a send except the last.
fn all_but_last(sent: &[Header]) -> Answers {
    let acks = sent.iter().map(|header| Ok(verdict(header.sequence, 0)));
    acks.take(sent.len() - 1).collect()
}

fn and_then(sent: &[Header], errno: i32) -> Answers {
    let mut answers = all_but_last(sent);
    answers.push(Err(io::Error::from_raw_os_error(errno)));
    answers
}

const OVERRUN: Script = |sent| and_then(sent, libc::ENOBUFS);
const LOST: Script = |sent| and_then(sent, libc::EBADF);

const NOT_PERMITTED: Script = |sent| {
    let refusal = |header: &Header| Ok(verdict(header.sequence, libc::EPERM));
    sent.iter().map(refusal).collect()
};

const FULL: Script = |sent| {
    let refusal = |header: &Header| Ok(verdict(header.sequence, libc::ENOSPC));
    sent.iter().map(refusal).collect()
};

/// An answer to a request that is no dump.
fn answer(kind: u16, sent: &[Header], payload: &[u8]) -> Answers {
    let sequence = sent[0].sequence;
    vec![
        Ok(message(kind, 0, sequence, payload)),
        Ok(verdict(sequence, 0)),
    ]
}

/// The kernel over three sockets, one of which plays `script` when a batch arrives.
fn linux(of_ipvs: Option<Script>, of_ipset: Option<Script>, of_links: Option<Script>) -> Dataplane {
    let then = |peer: Scripted, script: Option<Script>| match script {
        Some(script) => peer.then(script).socket(),
        None => peer.socket(),
    };
    let ipvs = Scripted::default()
        .then(|sent| {
            // `struct genlmsghdr`, `CTRL_ATTR_FAMILY_ID`.
            let mut payload = vec![1, 2, 0, 0, 6, 0, 1, 0];
            payload.extend(FAMILY.to_ne_bytes());
            payload.extend([0, 0]);
            answer(16, sent, &payload)
        })
        .then(|sent| {
            // `IPVS_CMD_SET_INFO`, `IPVS_INFO_ATTR_VERSION`, `IPVS_INFO_ATTR_CONN_TAB_SIZE`.
            let payload = [14, 1, 0, 0, 8, 0, 1, 0, 1, 2, 1, 0, 8, 0, 2, 0, 0, 16, 0, 0];
            answer(FAMILY, sent, &payload)
        });
    let ipset = Scripted::default().then(|sent| {
        // `struct nfgenmsg`, `IPSET_ATTR_PROTOCOL`.
        answer(0x601, sent, &[2, 0, 0, 0, 5, 0, 1, 0, 7, 0, 0, 0])
    });
    let ipset = ipset.then(|sent| vec![Ok(verdict(sent[0].sequence, 0))]);
    let exec = Arc::new(System::new(Clock::system(), System::DEFAULT_DEADLINE));
    let links = Links::over(then(Scripted::default(), of_links));
    let node = NodeKernel::new(links, Sysctls::default(), BTreeMap::new(), exec);
    let ipvs = IpvsClient::over(then(ipvs, of_ipvs)).unwrap();
    let ipset = ipset_netlink::Client::over(then(ipset, of_ipset)).unwrap();
    let mut linux = Dataplane::new(ipvs, Held::Ipsets(ipset, None), node);
    linux.link = Some(7);
    linux
}

/// The kind of failure, which must be the same for all steps.
fn failures(
    mut linux: Dataplane,
    phase: Phase,
    steps: impl IntoIterator<Item = Step>,
) -> FailureKind {
    let mut plan = Plan::default();
    for step in steps {
        plan.push(phase, step);
    }
    let report = linux.apply(&plan);
    let kinds: BTreeSet<FailureKind> = report.failures(&plan).map(|(_, f)| f.kind).collect();
    assert_eq!(report.failures(&plan).count(), plan.len(), "{report:?}");
    assert_eq!(kinds.len(), 1, "{report:?}");
    *kinds.first().unwrap()
}

fn of_servers(script: Script) -> FailureKind {
    let server = RealServer {
        weight: 1,
        forwarding: Forwarding::Masquerade,
        ..RealServer::default()
    };
    let steps = ["10.1.0.5:80", "10.1.0.6:80"].map(|at| Step::AddRealServer {
        vs: tcp("10.96.0.1:80"),
        key: rs(at),
        server,
    });
    failures(linux(Some(script), None, None), Phase::Servers, steps)
}

/// More entries than fit into one message; only the first message is answered.
fn of_entries(script: Script) -> FailureKind {
    let set = SetId::HealthCheckNodePort.name(IpFamily::V4);
    let steps = (1..=501).map(|port| Step::AddEntry {
        set: set.clone(),
        entry: SetEntry::Port(port),
    });
    failures(linux(None, Some(script), None), Phase::Entries, steps)
}

fn of_addresses(script: Script) -> FailureKind {
    let steps = ["10.96.0.1", "10.96.0.2"].map(|ip| Step::AddAddress {
        address: ip.parse().unwrap(),
    });
    failures(linux(None, None, Some(script)), Phase::Addresses, steps)
}

#[test]
fn a_conversation_that_breaks_off_is_transient() {
    for script in [all_but_last as Script, OVERRUN, LOST] {
        assert_eq!(of_servers(script), FailureKind::Transient);
        assert_eq!(of_entries(script), FailureKind::Transient);
        assert_eq!(of_addresses(script), FailureKind::Transient);
    }
}

#[test]
fn a_missing_capability_is_a_matter_of_permission() {
    assert_eq!(of_servers(NOT_PERMITTED), FailureKind::Permission);
    assert_eq!(of_entries(NOT_PERMITTED), FailureKind::Permission);
    assert_eq!(of_addresses(NOT_PERMITTED), FailureKind::Permission);
}

#[test]
fn a_refusal_is_what_the_kernel_answers() {
    assert_eq!(of_servers(FULL), FailureKind::Full);
    assert_eq!(of_addresses(FULL), FailureKind::Full);
}
