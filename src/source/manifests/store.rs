// SPDX-License-Identifier: Apache-2.0
//! The last content of each file, and the difference to a new reading. Only names and fingerprints
//! are kept, not the objects.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use tracing::info;

use super::super::census::Census;
use super::super::convert::Converter;
use super::super::problem::{Problem, ProblemLog, reason};
use super::super::{Observer, Options, Update};
use super::document::{self, Document, Format};
use super::files;
use super::object::{self, Key, Kind, Object};
use kpr_core::model::{Event, NodeInfo, ServiceName, SliceName};

#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    converter: Converter,
    problems: ProblemLog,
    files: BTreeMap<PathBuf, FileState>,
    /// Where each object in force comes from.
    owners: BTreeMap<Key, Owner>,
    node: Option<NodeInfo>,
    other_nodes: Census,
    service_cidrs: BTreeMap<Key, Vec<IpNet>>,
    /// The first scan was sent.
    started: bool,
}

/// The document that an object comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    path: PathBuf,
    fingerprint: u64,
    /// Its document is gone, but its file is invalid, so the object stays in force.
    retained: bool,
}

#[derive(Debug, Default)]
struct FileState {
    documents: Vec<DocumentState>,
    /// Objects that were in this file before it broke.
    retained: BTreeSet<Key>,
    /// Why the file as a whole could not be read.
    problem: Option<Problem>,
}

#[derive(Clone, Debug)]
struct DocumentState {
    fingerprint: u64,
    keys: Vec<Key>,
    /// Namespaces and names of its Services that have a selector.
    selecting: Vec<(String, String)>,
    problems: Vec<Problem>,
    broken: bool,
}

/// A file as one scan sees it.
struct Reading {
    /// `None`: as in the last scan.
    text: Option<String>,
    format: Format,
    state: FileState,
}

impl Store {
    pub(super) fn new(directory: &Path, options: &Options, observer: Arc<dyn Observer>) -> Self {
        Self {
            directory: directory.to_owned(),
            converter: Converter::new(options),
            problems: ProblemLog::new(observer),
            files: BTreeMap::new(),
            owners: BTreeMap::new(),
            node: None,
            other_nodes: Census::default(),
            service_cidrs: BTreeMap::new(),
            started: false,
        }
    }

    /// Reads the directory again; returns what changed since the last scan. Files that are
    /// `unfinished` (being written) are left as they were.
    pub(super) fn scan(&mut self, unfinished: &BTreeSet<PathBuf>) -> Vec<Update> {
        let paths = match files::list(&self.directory) {
            Ok(paths) => paths,
            Err(error) => {
                // Nothing is known, so nothing changes; but a first scan must say something.
                let directory = self.directory.display().to_string();
                let problem = unreadable(&directory, &error);
                self.problems.report(&directory, vec![problem]);
                return if self.started {
                    Vec::new()
                } else {
                    self.apply(BTreeMap::new(), Parsed::new())
                };
            }
        };
        let mut parsed = Parsed::new();
        let mut readings = BTreeMap::new();
        for path in paths {
            let known = self.files.remove(&path);
            if let Some(reading) = self.read(&path, known, &mut parsed, unfinished) {
                readings.insert(path, reading);
            }
        }
        let owners = self.find_owners(&mut readings);
        // An object whose owner changed is needed even if its document did not change.
        for (key, owner) in &owners {
            let unchanged = self.owners.get(key) == Some(owner);
            if unchanged || owner.retained || parsed.contains_key(&(key.clone(), owner.fingerprint))
            {
                continue;
            }
            if let Some(reading) = readings.get(&owner.path) {
                self.parse_again(&owner.path, reading, owner.fingerprint, &mut parsed);
            }
        }
        self.report(&readings);
        self.files = readings
            .into_iter()
            .map(|(path, reading)| (path, reading.state))
            .collect();
        self.apply(owners, parsed)
    }

    /// Reads one file; `None`: it is gone.
    fn read(
        &mut self,
        path: &Path,
        known: Option<FileState>,
        parsed: &mut Parsed,
        unfinished: &BTreeSet<PathBuf>,
    ) -> Option<Reading> {
        let format = match path.extension() {
            Some(extension) if extension == "json" => Format::Json,
            _ => Format::Yaml,
        };
        let shown = path.display().to_string();
        let mut reading = Reading {
            text: None,
            format,
            state: known.unwrap_or_default(),
        };
        if unfinished.contains(path) {
            return Some(reading);
        }
        // A named pipe would be waited for, for ever.
        if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            let message = "not a regular file; it is ignored";
            reading.state.problem = Some(Problem::new(shown, reason::UNREADABLE, message));
            return Some(reading);
        }
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // None: it is no link, but gone.
                let target = fs::read_link(path).ok()?;
                let message = format!(
                    "a link to {}, which is not there; what it held before stays in force",
                    target.display()
                );
                reading.state.problem = Some(Problem::new(shown, reason::UNREADABLE, message));
                return Some(reading);
            }
            Err(error) => {
                reading.state.problem = Some(unreadable(&shown, &error));
                return Some(reading);
            }
        };
        let old_keys = || reading.state.documents.iter().flat_map(|d| &d.keys);
        if text.trim().is_empty() && old_keys().next().is_some() {
            // What an interrupted or unfinished write looks like.
            let message = "the file is empty; its previous content stays in force";
            reading.state.problem = Some(Problem::new(shown, reason::UNREADABLE, message));
            return Some(reading);
        }
        let mut retained: BTreeSet<Key> = old_keys()
            .cloned()
            .chain(reading.state.retained.iter().cloned())
            .collect();
        let mut documents: Vec<DocumentState> = Vec::new();
        let mut unused = BTreeMap::new();
        for document in document::split(&text, format) {
            let fingerprint = document.fingerprint();
            let same = |state: &&DocumentState| state.fingerprint == fingerprint;
            let state = match reading.state.documents.iter().find(same) {
                Some(state) => state.clone(),
                None => self.parse(path, &document, parsed, &mut unused),
            };
            documents.push(state);
        }
        if !unused.is_empty() {
            let kinds: Vec<String> = unused
                .iter()
                .map(|(kind, count)| format!("{kind} ({count})"))
                .collect();
            info!(
                file = shown,
                kinds = kinds.join(", "),
                "ignored objects of unsupported kinds"
            );
        }
        if documents.iter().any(|document| document.broken) {
            for key in documents.iter().flat_map(|document| &document.keys) {
                retained.remove(key);
            }
        } else {
            retained.clear();
        }
        reading.state = FileState {
            documents,
            retained,
            problem: None,
        };
        reading.text = Some(text);
        Some(reading)
    }

    fn parse(
        &mut self,
        path: &Path,
        document: &Document<'_>,
        parsed: &mut Parsed,
        unused: &mut BTreeMap<String, usize>,
    ) -> DocumentState {
        let shown = path.display().to_string();
        let (mut contents, result) = object::read(document, &shown, &mut self.converter);
        if let Err(error) = result {
            let subject = format!("{shown} (document {})", document.number);
            contents.problems.push(Problem {
                field: format!("line {}", error.line),
                ..Problem::new(subject, reason::SYNTAX, error.message)
            });
        }
        for (kind, count) in contents.unused {
            *unused.entry(kind).or_default() += count;
        }
        let fingerprint = document.fingerprint();
        let mut keys = Vec::new();
        for (key, object) in contents.objects {
            // The first one of a document counts, as among documents.
            parsed.entry((key.clone(), fingerprint)).or_insert(object);
            keys.push(key);
        }
        DocumentState {
            fingerprint,
            keys,
            selecting: contents.selecting,
            problems: contents.problems,
            broken: contents.broken,
        }
    }

    fn parse_again(
        &mut self,
        path: &Path,
        reading: &Reading,
        fingerprint: u64,
        parsed: &mut Parsed,
    ) {
        let text = match &reading.text {
            Some(text) => text.clone(),
            None => fs::read_to_string(path).unwrap_or_default(),
        };
        for document in document::split(&text, reading.format) {
            if document.fingerprint() == fingerprint {
                self.parse(path, &document, parsed, &mut BTreeMap::new());
            }
        }
    }

    /// For each object the document that counts: the first in the order of the files' names.
    fn find_owners(&self, readings: &mut BTreeMap<PathBuf, Reading>) -> BTreeMap<Key, Owner> {
        let mut owners: BTreeMap<Key, Owner> = BTreeMap::new();
        let selecting: BTreeSet<(String, String)> = readings
            .values()
            .flat_map(|reading| &reading.state.documents)
            .flat_map(|document| document.selecting.iter().cloned())
            .collect();
        // The endpoints of such a Service are in EndpointSlices of its own.
        let is_mirrored = |key: &Key| {
            key.mirrored_service().is_none_or(|(namespace, name)| {
                !selecting.contains(&(namespace.to_owned(), name.to_owned()))
            })
        };
        for (path, reading) in readings.iter_mut() {
            for document in &mut reading.state.documents {
                // Found again in each scan.
                document
                    .problems
                    .retain(|problem| problem.reason != reason::DUPLICATE_OBJECT);
                for key in document.keys.iter().filter(|key| is_mirrored(key)) {
                    if let Some(owner) = owners.get(key) {
                        let subject = format!("{}: {key}", path.display());
                        let first = owner.path.display();
                        let message = format!("also defined in {first}, which takes precedence");
                        let problem = Problem::new(subject, reason::DUPLICATE_OBJECT, message);
                        // One for all the slices of an Endpoints object.
                        if !document.problems.contains(&problem) {
                            document.problems.push(problem);
                        }
                    } else {
                        let owner = Owner {
                            path: path.clone(),
                            fingerprint: document.fingerprint,
                            retained: false,
                        };
                        owners.insert(key.clone(), owner);
                    }
                }
            }
        }
        for reading in readings.values() {
            for key in reading.state.retained.iter().filter(|key| is_mirrored(key)) {
                if let (None, Some(owner)) = (owners.get(key), self.owners.get(key)) {
                    let owner = Owner {
                        retained: true,
                        ..owner.clone()
                    };
                    owners.insert(key.clone(), owner);
                }
            }
        }
        owners
    }

    fn report(&mut self, readings: &BTreeMap<PathBuf, Reading>) {
        let directory = self.directory.display().to_string();
        let names: BTreeSet<String> = readings.keys().map(|p| p.display().to_string()).collect();
        let is_current = |subject: &str| subject == NO_CLUSTER_IP || names.contains(subject);
        self.problems
            .retain(|subject| subject != directory && is_current(subject));
        let missing = without_cluster_ip(readings);
        self.problems.report(NO_CLUSTER_IP, Vec::from_iter(missing));
        for (path, reading) in readings {
            let state = &reading.state;
            let of_documents = state
                .documents
                .iter()
                .flat_map(|document| &document.problems)
                .filter(|problem| problem.reason != reason::NO_CLUSTER_IP);
            let problems = state.problem.iter().chain(of_documents).cloned().collect();
            self.problems.report(&path.display().to_string(), problems);
        }
    }

    /// The updates that lead from the old owners' objects to the new ones'. What appears is sent
    /// before what goes, and endpoints before the Services that need them.
    fn apply(&mut self, owners: BTreeMap<Key, Owner>, mut parsed: Parsed) -> Vec<Update> {
        let (mut services, mut slices, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        let old_node = self.node.clone();
        let old_cidrs = self.all_service_cidrs();
        for (key, owner) in &owners {
            if owner.retained {
                continue;
            }
            // Not parsed in this scan: as it was.
            let Some(object) = parsed.remove(&(key.clone(), owner.fingerprint)) else {
                continue;
            };
            match object {
                Some(Object::Service(service)) => services.push(service),
                Some(Object::Slice(slice)) => slices.push(slice),
                Some(Object::Node(node)) => self.node = Some(node),
                Some(Object::OtherNode(claims)) => {
                    self.other_nodes.set(&key.name, claims);
                }
                Some(Object::ServiceCidr(cidrs)) => {
                    self.service_cidrs.insert(key.clone(), cidrs);
                }
                None => gone.push(key.clone()),
            }
        }
        gone.extend(
            self.owners
                .keys()
                .filter(|key| !owners.contains_key(*key))
                .cloned(),
        );
        let mut deleted = Vec::new();
        for Key {
            kind,
            namespace,
            name,
        } in gone
        {
            match kind {
                Kind::Service => {
                    deleted.push(Event::ServiceDeleted(ServiceName { namespace, name }));
                }
                Kind::Slice | Kind::Mirrored => {
                    deleted.push(Event::SliceDeleted(SliceName { namespace, name }));
                }
                Kind::Node => {
                    self.node.take_if(|node| node.name == name);
                    self.other_nodes.remove(&name);
                }
                Kind::ServiceCidr => {
                    self.service_cidrs.remove(&Key {
                        kind,
                        namespace,
                        name,
                    });
                }
            }
        }
        self.owners = owners;
        let mut updates = Vec::new();
        if !self.started || self.node != old_node {
            updates.push(Update::Node(self.node.clone()));
        }
        updates.extend(self.other_nodes.news());
        let cidrs = self.all_service_cidrs();
        if !self.started || cidrs != old_cidrs {
            updates.push(Update::ServiceCidrs(cidrs));
        }
        let events: Vec<Event> = if self.started {
            let slices = slices.into_iter().map(Event::SliceApplied);
            let services = services.into_iter().map(Event::ServiceApplied);
            slices.chain(services).chain(deleted).collect()
        } else {
            vec![
                Event::SlicesReplaced(slices),
                Event::ServicesReplaced(services),
            ]
        };
        updates.extend(events.into_iter().map(Update::Model));
        self.started = true;
        updates
    }

    fn all_service_cidrs(&self) -> Vec<IpNet> {
        let all: BTreeSet<IpNet> = self.service_cidrs.values().flatten().copied().collect();
        all.into_iter().collect()
    }
}

/// What the Services without a cluster IP are reported under.
const NO_CLUSTER_IP: &str = "spec.clusterIP";
/// So many of them are named.
const NAMED: usize = 5;

/// One problem for all Services without a cluster IP: manifests as people write them have none.
fn without_cluster_ip(readings: &BTreeMap<PathBuf, Reading>) -> Option<Problem> {
    let mut missing = readings
        .values()
        .flat_map(|reading| &reading.state.documents)
        .flat_map(|document| &document.problems)
        .filter(|problem| problem.reason == reason::NO_CLUSTER_IP);
    let first = missing.next()?;
    let mut message = "missing, and nobody assigns one here: use objects as the API server has \
                       them (kubectl get services,endpointslices -A -o yaml)"
        .to_owned();
    let others: Vec<String> = missing
        .filter_map(|problem| Some(problem.service.as_ref()?.to_string()))
        .collect();
    if !others.is_empty() {
        let named = others.iter().take(NAMED).map(String::as_str);
        let named = named.collect::<Vec<_>>().join(", ");
        message = format!("{message}; the same goes for {named}");
        if let Some(more) = others.len().checked_sub(NAMED).filter(|more| *more > 0) {
            message = format!("{message} and {more} more");
        }
    }
    Some(Problem {
        message,
        ..first.clone()
    })
}

/// The objects that were parsed in one scan, by name and document.
type Parsed = BTreeMap<(Key, u64), Option<Object>>;

fn unreadable(path: &str, error: &io::Error) -> Problem {
    let message = format!("cannot read it: {error}; its previous content stays in force");
    Problem::new(path, reason::UNREADABLE, message)
}
