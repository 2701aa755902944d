// SPDX-License-Identifier: Apache-2.0
//! Node ports on the loopback address: for the node itself, and for nobody else.

use serde_json::json;

use super::Host::{Client, Node, Shell, Web1, Web2, Web3};
use super::{At, Case, Family, Host, Mode, Probe, Setup, Source, Want, probes};
use crate::manifests::Service;

const BOTH: &[Host] = &[Web1, Web3];
const FAR: &[Host] = &[Web3];
const NEAR: &[Host] = &[Web1, Web2];

const DEFAULT: &str = "node ports on localhost are off by default, as in kube-proxy's IPVS mode";

/// Those that the proxy itself forwards: in both modes and families the same.
fn forwarded() -> impl Iterator<Item = Case> {
    let with = |service: Service, name, value| service.with(name, json!(value));
    let all = [
        (
            Service::new("localhost-forwarded", 56, BOTH),
            Want::Answer(BOTH, Source::Node),
        ),
        (
            with(
                Service::new("localhost-forwarded-local", 57, FAR),
                "externalTrafficPolicy",
                "Local",
            ),
            Want::Answer(FAR, Source::Node),
        ),
        (
            with(
                Service::new("localhost-forwarded-affinity", 58, BOTH),
                "sessionAffinity",
                "ClientIP",
            ),
            Want::OneOf(BOTH, Source::Node),
        ),
        // The proxy has accepted the connection before it knows.
        (
            Service::new("localhost-forwarded-none", 59, &[]),
            Want::NoAnswer,
        ),
    ];
    all.into_iter().map(|(service, want)| {
        let mut probes = probes(&[Shell], &[At::Localhost], Want::Refused);
        probes.push(Probe::new(Node, At::Localhost, want));
        probes.push(Probe::new(Client, At::Localhost, Want::Dropped).only(Family::V4));
        Case {
            setup: Setup::Forwarder,
            service: service.exposed(),
            probes,
        }
    })
}

pub(super) fn cases() -> Vec<Case> {
    let local = |service: Service| service.with("externalTrafficPolicy", json!("Local"));
    let all = [
        (
            Setup::ClusterCidr,
            Service::new("localhost", 50, BOTH),
            Want::Answer(BOTH, Source::Node),
        ),
        // The node is not the outside: it reaches all endpoints.
        (
            Setup::ClusterCidr,
            local(Service::new("localhost-external-local", 51, FAR)),
            Want::Answer(FAR, Source::Node),
        ),
        (
            Setup::ClusterCidr,
            Service::new("localhost-no-endpoints", 52, &[]),
            Want::Refused,
        ),
        // Off by flag, and off because no node port answers there.
        (
            Setup::Bridge,
            Service::new("localhost-off", 53, BOTH),
            Want::Refused,
        ),
        (
            Setup::NodePortAddresses,
            Service::new("localhost-not-selected", 54, BOTH),
            Want::Refused,
        ),
        (
            Setup::NodeCidr,
            Service::new("localhost-selected", 55, NEAR),
            Want::Answer(NEAR, Source::Node),
        ),
    ];
    all.into_iter()
        .map(|(setup, service, want)| {
            let own = |family| Probe::new(Node, At::Localhost, want).only(family);
            // The pod's own loopback address.
            let mut probes = probes(&[Shell], &[At::Localhost], Want::Refused);
            probes.push(own(Family::V4).but(Mode::Ipvs, Want::Refused, DEFAULT));
            // The kernel has no way to translate connections of ::1.
            probes.push(Probe::new(Node, At::Localhost, Want::Refused).only(Family::V6));
            probes.push(Probe::new(Client, At::Localhost, Want::Dropped).only(Family::V4));
            Case {
                setup,
                service: service.exposed(),
                probes,
            }
        })
        .chain(forwarded())
        .collect()
}
