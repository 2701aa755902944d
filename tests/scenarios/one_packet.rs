// SPDX-License-Identifier: Apache-2.0
//! One-packet scheduling: each datagram of one client to another endpoint, where clients are
//! answered. Where packets are masqueraded they are not, and so it is not offered there.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, bail, ensure};

use super::Lab;
use super::forwarding::{METHOD, OWN_PORT, PORT, prepare};
use kpr_testkit::cases::At;
use kpr_testkit::manifests::Service;
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::{Outcome, Patience, Protocol, ask_again, datagram_socket};

const ONE_PACKET: &str = "kube-proxy-rs.io/one-packet";
const DATAGRAMS: usize = 8;

/// Who answers the datagrams of one client.
fn answers(lab: &Lab, from: Host, to: std::net::SocketAddr) -> Result<Vec<String>> {
    let socket = datagram_socket(lab.topology.host(from), to)?;
    let mut answers = Vec::new();
    for _ in 0..DATAGRAMS {
        match ask_again(&socket, Patience::Long)? {
            Outcome::Answered(answer) => answers.push(answer.by),
            outcome => bail!("a datagram from {from} to {to} was {outcome}"),
        }
    }
    Ok(answers)
}

fn alternate(answers: &[String]) -> bool {
    answers.windows(2).all(|pair| pair[0] != pair[1])
}

pub(super) fn spreads_the_datagrams_of_a_client(binary: &Path) -> Result<()> {
    let mut service = Service::new("ipip", 1, &[Host::Web3, Host::Web4]).exposed();
    for port in &mut service.ports {
        port.port = PORT;
    }
    let service = service.port(OWN_PORT, OWN_PORT).annotated(METHOD, "ipip");
    let one_packet = service.clone().annotated(ONE_PACKET, "true");
    // Without a forwarding method.
    let refused = Service::new("refused", 2, &[Host::Web1, Host::Web3])
        .protocols(&[Protocol::Udp])
        .annotated(ONE_PACKET, "true");
    let allowed = "--service-annotations=forwarding-method,one-packet";
    let lab = Lab::new(binary, &[one_packet.clone(), refused.clone()], &[allowed])?;
    prepare(&lab, std::slice::from_ref(&service))?;
    let proxy = lab.start()?;
    for family in Family::ALL {
        let vip = At::Vip.address(&one_packet, family, OWN_PORT);
        let by = answers(&lab, Host::Client, vip)?;
        ensure!(alternate(&by), "{vip}: {by:?}");
        // From pods and the node packets are masqueraded: each client has one endpoint.
        for from in [Host::Shell, Host::Node] {
            let by: BTreeSet<String> = answers(&lab, from, vip)?.into_iter().collect();
            ensure!(by.len() == 1, "{from} at {vip}: {by:?}");
        }
        let masqueraded = At::ClusterIp.address(&refused, family, 80);
        let by: BTreeSet<String> = answers(&lab, Host::Shell, masqueraded)?
            .into_iter()
            .collect();
        ensure!(by.len() == 1, "{masqueraded}: {by:?}");
    }
    proxy.wait_for_log(&[
        "default/refused",
        "not scheduled one by one",
        "forwarding-method",
    ])?;
    lab.nothing_to_do_soon()?;
    // Without the annotation a client has one endpoint.
    lab.manifests.apply(&service)?;
    let to = At::Vip.address(&service, Family::V4, OWN_PORT);
    kpr_testkit::wait::until("clients have one endpoint", || {
        let by: BTreeSet<String> = answers(&lab, Host::Client, to)?.into_iter().collect();
        ensure!(by.len() == 1, "{by:?}");
        Ok(())
    })
}

/// What the kernel does: the reason why it is offered nowhere else.
pub(super) fn is_no_use_with_masquerading(binary: &Path) -> Result<()> {
    let service = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let service = service.protocols(&[Protocol::Udp]);
    let lab = Lab::new(binary, std::slice::from_ref(&service), &[])?;
    let proxy = lab.start()?;
    proxy.kill()?;
    let mut found = Vec::new();
    for family in Family::ALL {
        for (at, port, from) in [
            (At::ClusterIp, 80, Host::Shell),
            (At::ClusterIp, 80, Host::Node),
            (At::Vip, 80, Host::Client),
        ] {
            let to = at.address(&service, family, port);
            for conntrack in ["1", "0"] {
                lab.node().sysctl(&[("net/ipv4/vs/conntrack", conntrack)])?;
                let change = format!("-E -u {to} -s rr -o");
                let change: Vec<&str> = change.split(' ').collect();
                lab.node().run("ipvsadm", &change)?;
                let socket = datagram_socket(lab.topology.host(from), to)?;
                let outcome = ask_again(&socket, Patience::Short)?;
                found.push((family, from, conntrack, outcome));
            }
        }
    }
    let answered: Vec<_> = found
        .iter()
        .filter(|(.., outcome)| matches!(outcome, Outcome::Answered(_)))
        .collect();
    ensure!(
        answered.is_empty(),
        "answered: {answered:#?}\nof {found:#?}"
    );
    Ok(())
}
