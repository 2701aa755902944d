// SPDX-License-Identifier: Apache-2.0
//! Converts a parsed document to objects of the kinds that the proxy uses. A field that is unknown
//! or has the wrong type is reported and left out.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{Metadata, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::info;

use super::super::convert::{Converted, Converter, object_name};
use super::super::problem::{Problem, reason};
use super::document::{Document, SyntaxError};
use kpr_core::model::{EndpointSlice, NodeInfo, Service};

mod items;

use items::ItemType;

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
    Service,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Node => write!(f, "Node {}", self.name),
            Kind::ServiceCidr => write!(f, "ServiceCIDR {}", self.name),
            Kind::Slice => write!(f, "EndpointSlice {}/{}", self.namespace, self.name),
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
    ServiceCidr(Vec<IpNet>),
}

/// What a document holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// The objects; `None` for those that the proxy has nothing to do with.
    pub(super) objects: Vec<(Key, Option<Object>)>,
    pub(super) problems: Vec<Problem>,
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
    let reader = RefCell::new(Reader {
        path,
        converter,
        contents: Contents::default(),
    });
    let result = document.read(|| items::Seed::new(&reader));
    let mut contents = reader.into_inner().contents;
    contents.broken |= result.is_err();
    (contents, result)
}

/// Takes objects one by one.
pub(super) struct Reader<'a> {
    path: &'a str,
    converter: &'a mut Converter,
    contents: Contents,
}

impl Reader<'_> {
    /// One object. `list` is what the list that it stands in says of its items.
    fn value(&mut self, mut value: Value, list: Option<&ItemType>) {
        if value.is_null() {
            return;
        }
        let Some(fields) = value.as_object_mut() else {
            self.refuse("not an object", reason::TYPE);
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
            ("v1", "Service") => self.object(value, Kind::Service, |converter, object| {
                wrap(converter.service(object), Object::Service)
            }),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                self.object(value, Kind::Slice, |converter, object| {
                    wrap(converter.slice(object), Object::Slice)
                });
            }
            ("v1", "Node") => self.object(value, Kind::Node, |converter, object| {
                wrap(converter.node(object), Object::Node)
            }),
            ("networking.k8s.io/v1", "ServiceCIDR") => {
                self.object(value, Kind::ServiceCidr, |converter, object| {
                    wrap(converter.service_cidr(object), Object::ServiceCidr)
                });
            }
            (_, "Service" | "EndpointSlice" | "Node" | "ServiceCIDR") => {
                let message = format!("{kind} of {api_version} is not supported");
                self.refuse(&message, reason::METADATA);
            }
            _ => info!(
                file = self.path,
                api_version, kind, "ignored object of unsupported kind"
            ),
        }
    }

    fn object<K>(
        &mut self,
        value: Value,
        kind: Kind,
        convert: impl FnOnce(&mut Converter, &K) -> Converted<Object>,
    ) where
        K: Resource + Metadata<Ty = ObjectMeta> + DeserializeOwned,
    {
        let name = value.pointer("/metadata/name").and_then(Value::as_str);
        let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str);
        let is_namespaced = matches!(kind, Kind::Service | Kind::Slice);
        let key = name.filter(|name| !name.is_empty()).map(|name| Key {
            kind,
            namespace: if is_namespaced {
                namespace.unwrap_or("default").into()
            } else {
                Arc::default()
            },
            name: name.into(),
        });
        let shown = object_name(
            K::KIND,
            &ObjectMeta {
                name: name.map(str::to_owned),
                namespace: namespace.map(str::to_owned),
                ..ObjectMeta::default()
            },
        );
        let Some(key) = key else {
            self.problem(&shown, "metadata.name", "missing", reason::METADATA);
            self.contents.broken = true;
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
        let problems = problems.into_iter().map(|problem| Problem {
            object: format!("{}: {}", self.path, problem.object),
            field: path_of(&steps_of(&problem.field), &removed),
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
                unknown.push(path_of(&ignored_steps(&path), removed));
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
                &path_of(&steps, removed),
                &format!("{error}; {outcome}"),
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

/// A step from a value into a part of it.
#[derive(Debug)]
enum PathStep {
    Field(String),
    Item(usize),
}

/// The steps of `spec.ports[1].port`.
fn steps_of(path: &str) -> Vec<PathStep> {
    let mut steps = Vec::new();
    for part in path.split(['.', '[']).filter(|part| !part.is_empty()) {
        steps.push(match part.strip_suffix(']').map(str::parse) {
            Some(Ok(index)) => PathStep::Item(index),
            _ => PathStep::Field(part.to_owned()),
        });
    }
    steps
}

/// The steps to a field that no type knows.
fn ignored_steps(path: &serde_ignored::Path<'_>) -> Vec<PathStep> {
    use serde_ignored::Path;
    let (parent, step) = match path {
        Path::Root => return Vec::new(),
        Path::Seq { parent, index } => (parent, Some(PathStep::Item(*index))),
        Path::Map { parent, key } => (parent, Some(PathStep::Field(key.clone()))),
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => (parent, None),
    };
    let mut steps = ignored_steps(parent);
    steps.extend(step);
    steps
}

/// A list, and the index of an item that was taken out of it.
type RemovedItem = (String, usize);

/// What was taken out of a value.
enum TakenOut {
    /// It moves the items behind it.
    Item(RemovedItem),
    /// Something that moves nothing.
    InPlace,
}

/// Takes the innermost list item on the way out of the value, or a single label or annotation.
/// `None`: nothing can be left out without changing the meaning of the rest.
fn take_out(value: &mut Value, steps: &[PathStep]) -> Option<TakenOut> {
    if let [
        PathStep::Field(meta),
        PathStep::Field(map),
        PathStep::Field(key),
    ] = steps
        && meta == "metadata"
        && matches!(map.as_str(), "labels" | "annotations")
    {
        let entries = value.get_mut(meta)?.get_mut(map)?.as_object_mut()?;
        return entries.remove(key).map(|_| TakenOut::InPlace);
    }
    let last = steps
        .iter()
        .rposition(|step| matches!(step, PathStep::Item(_)))?;
    let (way, item) = steps.split_at(last);
    let mut part = value;
    for step in way {
        part = match step {
            PathStep::Field(name) => part.get_mut(name)?,
            PathStep::Item(index) => part.get_mut(index)?,
        };
    }
    let items = part.as_array_mut()?;
    let Some(PathStep::Item(index)) = item.first() else {
        return None;
    };
    let found = items.get_mut(*index)?;
    let is_leaf = item.len() == 1;
    if is_leaf && (found.is_number() || found.is_boolean()) {
        // An unquoted text that looks like something else: let the conversion judge it, in place.
        *found = Value::String(found.to_string());
        return Some(TakenOut::InPlace);
    }
    items.remove(*index);
    Some(TakenOut::Item((path_of(way, &[]), *index)))
}

/// `spec.ports[1].port`, counting the items that were taken out before.
fn path_of(steps: &[PathStep], removed: &[RemovedItem]) -> String {
    let mut path = String::new();
    for step in steps {
        match step {
            PathStep::Field(name) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
            }
            PathStep::Item(index) => {
                let mut index = *index;
                // Indexes were noted in the order of removal, each as the list was then.
                for (_, gone) in removed.iter().rev().filter(|(list, _)| *list == path) {
                    if index >= *gone {
                        index += 1;
                    }
                }
                path.push('[');
                path.push_str(&index.to_string());
                path.push(']');
            }
        }
    }
    path
}
