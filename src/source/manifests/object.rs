// SPDX-License-Identifier: Apache-2.0
//! Converts a parsed document to objects of the kinds that the proxy uses. A field that is unknown
//! or has the wrong type is reported and left out.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{self as core, Endpoints};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{Metadata, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::census::node_claims;
use super::super::convert::{Converted, Converter, object_name};
use super::super::problem::{Problem, reason};
use super::document::{Document, SyntaxError};
use crate::yaml::{self, Entry, Node, Words};
use kpr_core::model::{EndpointSlice, NodeClaims, NodeInfo, Service};

mod mirror;
mod path;

use path::{PathStep, RemovedItem, TakenOut, path_of, restored, take_out};

/// What makes an object the same one, in the order in which kinds are sent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    /// Empty for kinds without namespaces.
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Node,
    ServiceCidr,
    Slice,
    /// A slice that is made of an `Endpoints` object; its name is the object's, with a slash and
    /// more behind it.
    Mirrored,
    Service,
}

impl Key {
    /// For a slice that is made of an `Endpoints` object: namespace and name of its Service.
    pub(super) fn mirrored_service(&self) -> Option<(&str, &str)> {
        let service = self.name.split('/').next()?;
        (self.kind == Kind::Mirrored).then_some((&*self.namespace, service))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Node => write!(f, "Node {}", self.name),
            Kind::ServiceCidr => write!(f, "ServiceCIDR {}", self.name),
            Kind::Slice => write!(f, "EndpointSlice {}/{}", self.namespace, self.name),
            Kind::Mirrored => {
                let (namespace, name) = self.mirrored_service().unwrap_or_default();
                write!(f, "Endpoints {namespace}/{name}")
            }
            Kind::Service => write!(f, "Service {}/{}", self.namespace, self.name),
        }
    }
}

/// A usable object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Object {
    Service(Service),
    Slice(EndpointSlice),
    Node(NodeInfo),
    /// Another node, of which only its addresses matter.
    OtherNode(NodeClaims),
    ServiceCidr(Vec<IpNet>),
}

/// What a document holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// The objects; `None` for those that the proxy has nothing to do with.
    pub(super) objects: Vec<(Key, Option<Object>)>,
    pub(super) problems: Vec<Problem>,
    /// Namespaces and names of Services with a selector, whose `Endpoints` are not mirrored.
    pub(super) selecting: Vec<(String, String)>,
    /// How many objects there are of kinds that the proxy does not use.
    pub(super) unused: BTreeMap<String, usize>,
    /// A part is invalid: the last valid content stays in force.
    pub(super) broken: bool,
}

/// Reads the objects of a document in the file `path`. A syntax error comes after what could be
/// read before it.
pub(super) fn read(
    document: &Document<'_>,
    path: &str,
    converter: &mut Converter,
) -> (Contents, Result<(), SyntaxError>) {
    let mut reader = Reader {
        path,
        converter,
        contents: Contents::default(),
    };
    let mut source = yaml::Reader::new(document.text, Words::FewBooleans);
    let result = reader.read(&mut source, document.error.is_none());
    let Reader { mut contents, .. } = reader;
    let subject = format!("{path} (document {})", document.number);
    contents
        .problems
        .extend(source.repeated.iter().map(|repeated| {
            let message = format!(
                "{:?} stands here a second time; the last one counts",
                repeated.key
            );
            Problem {
                field: format!("line {}", document.line_of(repeated.place.line)),
                ..Problem::new(&*subject, reason::DUPLICATE, message)
            }
        }));
    let result = match (&document.error, result) {
        (Some(error), _) => Err(error.clone()),
        (None, result) => result.map_err(|error| SyntaxError {
            line: document.line_of(error.place.line),
            message: error.message,
        }),
    };
    contents.broken |= result.is_err();
    (contents, result)
}

/// What a typed list (`ServiceList`) says of its items.
struct ItemType {
    api_version: String,
    kind: String,
}

impl ItemType {
    /// `None` for a plain `List`, or what is no list.
    fn of(fields: &[Entry]) -> Option<Self> {
        let kind = text(fields, "kind")?.strip_suffix("List")?;
        (!kind.is_empty()).then(|| Self {
            api_version: text(fields, "apiVersion").unwrap_or_default().to_owned(),
            kind: kind.to_owned(),
        })
    }
}

fn text<'a>(fields: &'a [Entry], name: &str) -> Option<&'a str> {
    let field = fields.iter().rfind(|field| field.key == name)?;
    field.node.as_text()
}

/// Takes objects one by one.
struct Reader<'a> {
    path: &'a str,
    converter: &'a mut Converter,
    contents: Contents,
}

/// Our own Node, or what another one has.
fn any_node(converter: &mut Converter, node: &core::Node) -> Converted<Object> {
    match converter.node(node) {
        (None, problems) => (Some(Object::OtherNode(claims_of(node))), problems),
        ours => wrap(ours, Object::Node),
    }
}

/// What a Node has.
fn claims_of(node: &core::Node) -> NodeClaims {
    let status = node.status.as_ref();
    let addresses = status.and_then(|status| status.addresses.as_ref());
    let spec = node.spec.as_ref();
    let cidrs = spec.and_then(|spec| spec.pod_cidrs.as_ref());
    let first = spec.and_then(|spec| spec.pod_cidr.as_ref());
    node_claims(
        addresses
            .into_iter()
            .flatten()
            .map(|address| address.address.as_str()),
        cidrs.into_iter().flatten().chain(first).map(String::as_str),
    )
}

impl Reader<'_> {
    /// The object, or the items of the list, that a document holds; of a broken one only the
    /// latter.
    fn read(&mut self, source: &mut yaml::Reader<'_>, is_whole: bool) -> Result<(), yaml::Error> {
        source.next_document()?;
        // Items that do not say what they are, before the list has said it.
        let mut untyped = Vec::new();
        let may_be_list =
            |fields: &[Entry]| text(fields, "kind").is_none_or(|kind| kind.ends_with("List"));
        let rest = source.node_by_items(may_be_list, |fields, item| {
            let list = ItemType::of(fields);
            if list.is_none() && item.get("kind").is_none() {
                untyped.push(item);
            } else {
                self.value(item, list.as_ref());
            }
        })?;
        let fields = rest.entries();
        if text(fields, "kind").is_some_and(|kind| kind.ends_with("List")) {
            let list = ItemType::of(fields);
            for item in untyped {
                self.value(item, list.as_ref());
            }
        } else if is_whole {
            self.value(rest, None);
        }
        Ok(())
    }

    /// One object. `list` is what the list that it stands in says of its items.
    fn value(&mut self, node: Node, list: Option<&ItemType>) {
        let named = node.value.named();
        let mut value = Value::from(node);
        if value.is_null() {
            return;
        }
        let Some(fields) = value.as_object_mut() else {
            self.refuse(&format!("{named}, not an object"), reason::TYPE);
            return;
        };
        if let Some(item) = list {
            // The items of a typed list do not repeat what they are.
            let api_version = item.api_version.as_str();
            fields.entry("apiVersion").or_insert(api_version.into());
            fields.entry("kind").or_insert(item.kind.as_str().into());
        }
        let text = |field| value.get(field).and_then(Value::as_str).map(str::to_owned);
        let (Some(api_version), Some(kind)) = (text("apiVersion"), text("kind")) else {
            self.refuse("apiVersion and kind are required", reason::METADATA);
            return;
        };
        match (api_version.as_str(), kind.as_str()) {
            ("v1", "Service") => {
                self.note_selector(&value);
                self.object(value, Kind::Service, |converter, object| {
                    wrap(converter.service(object), Object::Service)
                });
            }
            ("v1", "Endpoints") => self.endpoints(value),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                self.object(value, Kind::Slice, |converter, object| {
                    wrap(converter.slice(object), Object::Slice)
                });
            }
            ("v1", "Node") => self.object(value, Kind::Node, any_node),
            ("networking.k8s.io/v1", "ServiceCIDR") => {
                self.object(value, Kind::ServiceCidr, |converter, object| {
                    wrap(converter.service_cidr(object), Object::ServiceCidr)
                });
            }
            (_, "Service" | "Endpoints" | "EndpointSlice" | "Node" | "ServiceCIDR") => {
                let message = format!("{kind} of {api_version} is not supported");
                self.refuse(&message, reason::METADATA);
            }
            _ => *self.contents.unused.entry(kind).or_default() += 1,
        }
    }

    fn note_selector(&mut self, service: &Value) {
        let text = |pointer| service.pointer(pointer).and_then(Value::as_str);
        if service
            .pointer("/spec/selector")
            .is_some_and(Value::is_object)
            && let Some(name) = text("/metadata/name")
        {
            let namespace = text("/metadata/namespace").unwrap_or("default");
            let service = (namespace.to_owned(), name.to_owned());
            self.contents.selecting.push(service);
        }
    }

    /// An object that is read as the slices that a cluster would have for it.
    fn endpoints(&mut self, value: Value) {
        let Some((key, shown)) = self.key::<Endpoints>(&value, Kind::Mirrored) else {
            return;
        };
        let mut removed = Vec::new();
        let Some(object) = self.typed::<Endpoints>(value, &shown, &mut removed) else {
            self.contents.broken = true;
            return;
        };
        for mirrored in mirror::slices(&object) {
            let (slice, problems) = self.converter.slice(&mirrored.slice);
            let key = Key {
                name: mirrored
                    .slice
                    .metadata
                    .name
                    .as_deref()
                    .unwrap_or_default()
                    .into(),
                ..key.clone()
            };
            self.contents.objects.push((key, slice.map(Object::Slice)));
            let problems = problems.into_iter().map(|problem| Problem {
                object: shown.clone(),
                field: mirrored.field(&problem.field),
                ..problem
            });
            self.problems(problems, &removed);
        }
    }

    /// The key of an object, and how it is named in problems; none without a name.
    fn key<K: Resource>(&mut self, value: &Value, kind: Kind) -> Option<(Key, String)> {
        let name = value.pointer("/metadata/name");
        let text = name.and_then(Value::as_str).filter(|name| !name.is_empty());
        let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str);
        let shown = object_name(
            K::KIND,
            &ObjectMeta {
                name: text.map(str::to_owned),
                namespace: namespace.map(str::to_owned),
                ..ObjectMeta::default()
            },
        );
        let Some(text) = text else {
            let message = match name {
                Some(name @ (Value::Number(_) | Value::Bool(_))) => {
                    format!("{name} is no text: put it in quotes")
                }
                _ => "missing".to_owned(),
            };
            self.problem(&shown, "metadata.name", &message, reason::METADATA);
            self.contents.broken = true;
            return None;
        };
        let is_namespaced = !matches!(kind, Kind::Node | Kind::ServiceCidr);
        let key = Key {
            kind,
            namespace: if is_namespaced {
                namespace.unwrap_or("default").into()
            } else {
                Arc::default()
            },
            name: text.into(),
        };
        Some((key, shown))
    }

    fn object<K>(
        &mut self,
        value: Value,
        kind: Kind,
        convert: impl FnOnce(&mut Converter, &K) -> Converted<Object>,
    ) where
        K: Resource + Metadata<Ty = ObjectMeta> + DeserializeOwned,
    {
        let Some((key, shown)) = self.key::<K>(&value, kind) else {
            return;
        };
        let mut removed = Vec::new();
        let Some(object) = self.typed::<K>(value, &shown, &mut removed) else {
            self.contents.broken = true;
            return;
        };
        let (object, problems) = convert(self.converter, &object);
        if object.is_none() && !problems.is_empty() {
            self.contents.broken = true;
        } else {
            self.contents.objects.push((key, object));
        }
        self.problems(problems, &removed);
    }

    /// Problems of an object of which some items were removed.
    fn problems(&mut self, problems: impl IntoIterator<Item = Problem>, removed: &[RemovedItem]) {
        let path = self.path;
        let problems = problems.into_iter().map(|problem| Problem {
            object: format!("{path}: {}", problem.object),
            field: restored(problem.field, removed),
            ..problem
        });
        self.contents.problems.extend(problems);
    }

    /// The object with its type. Parts that do not fit are taken out one by one, where leaving
    /// them out does not turn the rest into something else.
    /// Items that were taken out are added to `removed`.
    fn typed<K: DeserializeOwned>(
        &mut self,
        mut value: Value,
        shown: &str,
        removed: &mut Vec<RemovedItem>,
    ) -> Option<K> {
        loop {
            let mut unknown = Vec::new();
            let mut track = serde_path_to_error::Track::new();
            let tracked = serde_path_to_error::Deserializer::new(&value, &mut track);
            let result = serde_ignored::deserialize(tracked, |path| {
                unknown.push(restored(path_of(&path::ignored_steps(&path)), removed));
            });
            let error = match result {
                Ok(object) => {
                    for field in unknown {
                        let message = "unknown field; it is ignored";
                        self.problem(shown, &field, message, reason::UNKNOWN_FIELD);
                    }
                    return Some(object);
                }
                Err(error) => error,
            };
            let steps: Vec<PathStep> = track
                .path()
                .iter()
                .filter_map(|segment| match segment {
                    serde_path_to_error::Segment::Seq { index } => Some(PathStep::Item(*index)),
                    serde_path_to_error::Segment::Map { key } => Some(PathStep::Field(key.clone())),
                    _ => None,
                })
                .collect();
            let taken = take_out(&mut value, &steps);
            let outcome = if taken.is_some() {
                "it is ignored"
            } else {
                "the object is ignored"
            };
            self.problem(
                shown,
                &restored(path_of(&steps), removed),
                &format!("{}; {outcome}", path::plain_words(&error.to_string())),
                reason::TYPE,
            );
            if let TakenOut::Item(item) = taken? {
                removed.push(item);
            }
        }
    }

    fn problem(&mut self, object: &str, field: &str, message: &str, reason: &'static str) {
        self.contents.problems.push(Problem {
            field: field.to_owned(),
            ..Problem::new(format!("{}: {object}", self.path), reason, message)
        });
    }

    /// A value that is no object that could be named.
    fn refuse(&mut self, message: &str, reason: &'static str) {
        self.contents.broken = true;
        let problem = Problem::new(self.path, reason, message);
        self.contents.problems.push(problem);
    }
}

fn wrap<T>(
    (object, problems): Converted<T>,
    variant: impl FnOnce(T) -> Object,
) -> Converted<Object> {
    (object.map(variant), problems)
}
