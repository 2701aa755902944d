// SPDX-License-Identifier: Apache-2.0
//! Reads the fields of one object: a valid value, or a problem that names the field.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::problem::{Problem, reason};
use super::address::{parse_cidr, parse_host, parse_ip};
use crate::shortened;
use kpr_core::model::{Protocol, ServiceName};

/// Maximum number of problems of one object that are listed. They are kept and compared with those
/// of its next state.
const MOST: usize = 100;

/// The problems of one object.
pub(super) struct Problems {
    kind: &'static str,
    object: String,
    service: Option<ServiceName>,
    pub(super) found: Vec<Problem>,
}

impl Problems {
    pub(super) fn of(kind: &'static str, meta: &ObjectMeta) -> Self {
        Self {
            kind,
            object: object_name(kind, meta),
            service: service_of(kind, meta),
            found: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, field: &str, reason: &'static str, message: impl Into<String>) {
        let (field, message) = match self.found.len() {
            0..MOST => (field, shortened::message(message.into())),
            MOST => ("", "has more problems than are listed".to_owned()),
            _ => return,
        };
        self.found.push(Problem {
            object: self.object.clone(),
            field: field.to_owned(),
            message,
            reason,
            service: self.service.clone(),
        });
    }

    /// Namespace and name.
    pub(super) fn name(&mut self, meta: &ObjectMeta) -> Option<(String, Arc<str>)> {
        let name = meta.name.as_deref().filter(|name| !name.is_empty());
        let Some(name) = name else {
            let message = format!("a {} needs a name", self.kind);
            self.add("metadata.name", reason::METADATA, message);
            return None;
        };
        let namespace = meta.namespace.as_deref().unwrap_or("default");
        Some((namespace.to_owned(), name.into()))
    }

    pub(super) fn protocol(&mut self, field: &str, text: Option<&str>) -> Option<Protocol> {
        let Some(text) = text else {
            return Some(Protocol::Tcp);
        };
        let protocol = text
            .parse::<Protocol>()
            .map_err(|error| format!("{error}; the port is ignored"));
        self.valid(field, reason::PROTOCOL, protocol)
    }

    pub(super) fn port(&mut self, field: &str, number: Option<i32>) -> Option<NonZeroU16> {
        let Some(number) = number else {
            self.add(field, reason::PORT, "missing; the port is ignored");
            return None;
        };
        self.valid(field, reason::PORT, port(number, "the port"))
    }

    /// A port that may be left out; 0 says so too.
    pub(super) fn optional_port(&mut self, field: &str, number: Option<i32>) -> Option<NonZeroU16> {
        let number = number.filter(|number| *number != 0)?;
        self.valid(field, reason::PORT, port(number, "it"))
    }

    pub(super) fn address(&mut self, field: &str, text: &str) -> Option<IpAddr> {
        self.valid(field, reason::ADDRESS, parse_ip(text))
    }

    /// The address of a host.
    pub(super) fn host(&mut self, field: &str, text: &str) -> Option<IpAddr> {
        self.valid(field, reason::ADDRESS, parse_host(text))
    }

    pub(super) fn addresses(&mut self, field: &str, texts: &[String]) -> Vec<IpAddr> {
        texts
            .iter()
            .enumerate()
            .filter_map(|(index, text)| self.address(&format!("{field}[{index}]"), text))
            .collect()
    }

    pub(super) fn cidr(&mut self, field: &str, text: &str) -> Option<IpNet> {
        self.valid(field, reason::ADDRESS, parse_cidr(text))
    }

    /// A word that is none of those that are possible counts as the first.
    pub(super) fn one_of(&mut self, field: &str, word: Option<&str>, words: &[&str]) {
        let unknown = word.filter(|word| !word.is_empty() && !words.contains(word));
        if let (Some(word), Some(first)) = (unknown, words.first()) {
            let message = format!("{word:?} must be {}; {first} is used", words.join(" or "));
            self.add(field, reason::VALUE, message);
        }
    }

    /// A value, or a problem of the field.
    pub(super) fn valid<T>(
        &mut self,
        field: &str,
        reason: &'static str,
        value: Result<T, String>,
    ) -> Option<T> {
        value
            .map_err(|message| self.add(field, reason, message))
            .ok()
    }
}

fn port(number: i32, what: &str) -> Result<NonZeroU16, String> {
    let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
    port.ok_or_else(|| format!("{number} must be 1 to 65535; {what} is ignored"))
}

/// The problem of an object that does not have the fields of its kind.
pub(crate) fn unreadable(
    kind: &'static str,
    meta: &ObjectMeta,
    field: &str,
    message: String,
) -> Problem {
    Problem {
        object: object_name(kind, meta),
        field: field.to_owned(),
        message: shortened::message(message),
        reason: reason::TYPE,
        service: service_of(kind, meta),
    }
}

/// The Service that an object is, or belongs to.
fn service_of(kind: &str, meta: &ObjectMeta) -> Option<ServiceName> {
    let name = match kind {
        "Service" => meta.name.as_deref()?,
        "EndpointSlice" => meta.labels.as_ref()?.get(super::SERVICE_NAME_LABEL)?,
        _ => return None,
    };
    let namespace = meta.namespace.as_deref().unwrap_or("default");
    Some(ServiceName::new(namespace, name))
}

/// `Service default/web`, or `Node worker` for what has no namespace.
pub(crate) fn object_name(kind: &str, meta: &ObjectMeta) -> String {
    let name = meta.name.as_deref().unwrap_or_default();
    if matches!(kind, "Node" | "ServiceCIDR") {
        format!("{kind} {name}")
    } else {
        let namespace = meta.namespace.as_deref().unwrap_or("default");
        format!("{kind} {namespace}/{name}")
    }
}
