// SPDX-License-Identifier: Apache-2.0
//! Handling of the objects of each kind. A list is collected as model objects and sent as one
//! update; other objects are not kept here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::Event as WatchEvent;

use tokio::sync::watch;

use super::super::convert::{Converted, Converter, object_name, unreadable};
use super::super::problem::ProblemLog;
use super::super::{Observer, Options, Update};
use super::object::{Decode, Object, metadata};
use super::watch::Handler;
use kpr_core::model::{self, NodeInfo, ServiceName, SliceName};

/// Converts objects of one kind and reports what is wrong with them.
struct Conversion {
    kind: &'static str,
    converter: Converter,
    problems: ProblemLog,
    /// The objects with problems in the list that is arriving.
    listed_with_problems: BTreeSet<String>,
}

impl Conversion {
    fn new(kind: &'static str, options: &Options, observer: Arc<dyn Observer>) -> Self {
        Self {
            kind,
            converter: Converter::new(options),
            problems: ProblemLog::new(observer),
            listed_with_problems: BTreeSet::new(),
        }
    }

    fn convert<K: Decode, T>(
        &mut self,
        object: &Object<K>,
        convert: impl FnOnce(&mut Converter, &K) -> Converted<T>,
    ) -> Option<T> {
        let meta = metadata(object);
        let (converted, problems) = match object {
            Ok(object) => convert(&mut self.converter, object),
            Err(error) => {
                let message = format!("{}; the object is ignored", error.message);
                let problem = unreadable(self.kind, meta, &error.field, message);
                (None, vec![problem])
            }
        };
        // Names are made only for the few objects that need them.
        if !problems.is_empty() || !self.problems.is_empty() {
            let name = object_name(self.kind, meta);
            if !problems.is_empty() {
                self.listed_with_problems.insert(name.clone());
            }
            self.problems.report(&name, problems);
        }
        converted
    }

    fn begin(&mut self) {
        self.listed_with_problems.clear();
    }

    /// The list is complete: what is not in it need not be remembered.
    fn complete(&mut self) {
        let listed = std::mem::take(&mut self.listed_with_problems);
        self.problems.retain(|name| listed.contains(name));
    }

    fn forget(&mut self, meta: &ObjectMeta) {
        if !self.problems.is_empty() {
            self.problems
                .report(&object_name(self.kind, meta), Vec::new());
        }
    }
}

/// Namespace and name as the API server sends them.
fn names(meta: &ObjectMeta) -> (Arc<str>, Arc<str>) {
    let text = |part: Option<&String>| part.map_or("", String::as_str).into();
    (text(meta.namespace.as_ref()), text(meta.name.as_ref()))
}

/// A kind whose objects go to the model one by one.
pub(super) trait ModelKind: Sized {
    type Object: Decode + k8s_openapi::Resource;

    fn convert(converter: &mut Converter, object: &Self::Object) -> Converted<Self>;
    fn replaced(all: Vec<Self>) -> model::Event;
    fn applied(self) -> model::Event;
    fn deleted(namespace: Arc<str>, name: Arc<str>) -> model::Event;

    /// Whether it claims addresses that may be a Node's.
    fn claims_addresses(&self) -> bool {
        false
    }
}

impl ModelKind for model::Service {
    type Object = core::Service;

    fn convert(converter: &mut Converter, object: &Self::Object) -> Converted<Self> {
        converter.service(object)
    }

    fn replaced(all: Vec<Self>) -> model::Event {
        model::Event::ServicesReplaced(all)
    }

    fn applied(self) -> model::Event {
        model::Event::ServiceApplied(self)
    }

    fn deleted(namespace: Arc<str>, name: Arc<str>) -> model::Event {
        model::Event::ServiceDeleted(ServiceName { namespace, name })
    }

    fn claims_addresses(&self) -> bool {
        Self::claims_addresses(self)
    }
}

impl ModelKind for model::EndpointSlice {
    type Object = discovery::EndpointSlice;

    fn convert(converter: &mut Converter, object: &Self::Object) -> Converted<Self> {
        converter.slice(object)
    }

    fn replaced(all: Vec<Self>) -> model::Event {
        model::Event::SlicesReplaced(all)
    }

    fn applied(self) -> model::Event {
        model::Event::SliceApplied(self)
    }

    fn deleted(namespace: Arc<str>, name: Arc<str>) -> model::Event {
        model::Event::SliceDeleted(SliceName { namespace, name })
    }
}

pub(super) type Services = Objects<model::Service>;
pub(super) type Slices = Objects<model::EndpointSlice>;

/// The objects of such a kind.
pub(super) struct Objects<M> {
    conversion: Conversion,
    listed: Vec<M>,
    /// Told once, when an object claims addresses that may be a Node's.
    claims: Option<watch::Sender<bool>>,
}

impl<M: ModelKind> Objects<M> {
    pub(super) fn new(options: &Options, observer: Arc<dyn Observer>) -> Self {
        Self {
            conversion: Conversion::new(
                <M::Object as k8s_openapi::Resource>::KIND,
                options,
                observer,
            ),
            listed: Vec::new(),
            claims: None,
        }
    }

    /// The same; it tells when an object claims addresses that may be a Node's.
    pub(super) fn telling(self, claims: watch::Sender<bool>) -> Self {
        Self {
            claims: Some(claims),
            ..self
        }
    }

    fn convert(&mut self, object: &Object<M::Object>) -> Option<M> {
        let converted = self.conversion.convert(object, M::convert);
        if converted.as_ref().is_some_and(M::claims_addresses)
            && let Some(claims) = self.claims.take()
        {
            claims.send_replace(true);
        }
        converted
    }
}

impl<M: ModelKind> Handler<M::Object> for Objects<M> {
    fn handle(&mut self, event: WatchEvent<Object<M::Object>>) -> Option<Update> {
        let deleted = |meta: &ObjectMeta| {
            let (namespace, name) = names(meta);
            M::deleted(namespace, name)
        };
        let event = match event {
            WatchEvent::Init => {
                self.conversion.begin();
                self.listed = Vec::new();
                return None;
            }
            WatchEvent::InitApply(object) => {
                let converted = self.convert(&object);
                self.listed.extend(converted);
                return None;
            }
            WatchEvent::InitDone => {
                self.conversion.complete();
                M::replaced(std::mem::take(&mut self.listed))
            }
            WatchEvent::Apply(object) => match self.convert(&object) {
                Some(converted) => converted.applied(),
                // It may have been one that counts.
                None => deleted(metadata(&object)),
            },
            WatchEvent::Delete(object) => {
                self.conversion.forget(metadata(&object));
                deleted(metadata(&object))
            }
        };
        Some(Update::Model(event))
    }
}

/// Our own Node. Its status changes often; what does not matter here is not sent.
pub(super) struct Nodes {
    conversion: Conversion,
    listed: Option<NodeInfo>,
    /// What was sent last, once something was.
    sent: Option<NodeInfo>,
    sent_any: bool,
}

impl Nodes {
    pub(super) fn new(options: &Options, observer: Arc<dyn Observer>) -> Self {
        Self {
            conversion: Conversion::new("Node", options, observer),
            listed: None,
            sent: None,
            sent_any: false,
        }
    }

    fn convert(&mut self, object: &Object<core::Node>) -> Option<NodeInfo> {
        self.conversion.convert(object, Converter::node)
    }
}

impl Handler<core::Node> for Nodes {
    fn handle(&mut self, event: WatchEvent<Object<core::Node>>) -> Option<Update> {
        let node = match event {
            WatchEvent::Init => {
                self.listed = None;
                return None;
            }
            WatchEvent::InitApply(object) => {
                self.listed = self.convert(&object);
                return None;
            }
            WatchEvent::InitDone => self.listed.take(),
            WatchEvent::Apply(object) => self.convert(&object),
            WatchEvent::Delete(_) => None,
        };
        if self.sent_any && self.sent == node {
            return None;
        }
        self.sent_any = true;
        self.sent.clone_from(&node);
        Some(Update::Node(node))
    }
}

/// The ranges of Service addresses.
pub(super) struct Cidrs {
    conversion: Conversion,
    by_name: BTreeMap<Arc<str>, Vec<IpNet>>,
    listed: BTreeMap<Arc<str>, Vec<IpNet>>,
    sent: Option<Vec<IpNet>>,
}

impl Cidrs {
    pub(super) fn new(options: &Options, observer: Arc<dyn Observer>) -> Self {
        Self {
            conversion: Conversion::new("ServiceCIDR", options, observer),
            by_name: BTreeMap::new(),
            listed: BTreeMap::new(),
            sent: None,
        }
    }

    fn convert(&mut self, object: &Object<networking::ServiceCIDR>) -> Vec<IpNet> {
        self.conversion
            .convert(object, Converter::service_cidr)
            .unwrap_or_default()
    }

    fn changed(&mut self) -> Option<Update> {
        let all: BTreeSet<IpNet> = self.by_name.values().flatten().copied().collect();
        let all: Vec<IpNet> = all.into_iter().collect();
        if self.sent.as_ref() == Some(&all) {
            return None;
        }
        self.sent = Some(all.clone());
        Some(Update::ServiceCidrs(all))
    }
}

impl Handler<networking::ServiceCIDR> for Cidrs {
    fn handle(&mut self, event: WatchEvent<Object<networking::ServiceCIDR>>) -> Option<Update> {
        match event {
            WatchEvent::Init => {
                self.listed.clear();
                return None;
            }
            WatchEvent::InitApply(object) => {
                let cidrs = self.convert(&object);
                self.listed.insert(names(metadata(&object)).1, cidrs);
                return None;
            }
            WatchEvent::InitDone => self.by_name = std::mem::take(&mut self.listed),
            WatchEvent::Apply(object) => {
                let cidrs = self.convert(&object);
                self.by_name.insert(names(metadata(&object)).1, cidrs);
            }
            WatchEvent::Delete(object) => {
                self.by_name.remove(&names(metadata(&object)).1);
            }
        }
        self.changed()
    }

    fn absent(&mut self) -> Option<Update> {
        self.by_name.clear();
        self.changed()
    }
}
