// SPDX-License-Identifier: Apache-2.0
//! YAML and JSON as the programs of Kubernetes read them, with the line of each value.
//!
//! They turn YAML into JSON with `sigs.k8s.io/yaml` v1.6, which is `go-yaml` v2: words and numbers
//! are those of YAML 1.1 (`yes`, `0014`, `1_000`), and the last of a repeated key counts.

use std::collections::BTreeMap;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};

mod scalar;
pub(crate) use scalar::integer;
#[cfg(test)]
mod tests;

/// Aliases may not repeat more values than this: each costs memory, and a few lines can stand for
/// billions. go-yaml's limit is of the same size for files below some megabytes.
const MAX_REPEATED_NODES: usize = 400_000;

/// Where something stands, counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// A value and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
    /// A text that is written as it is (`|`), so that its lines are lines of the file.
    pub(crate) is_literal: bool,
}

/// A value of JSON.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// As JSON has it: `16` for `0x10`.
    Number(String),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file.
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) place: Place,
    pub(crate) node: Node,
}

/// A key that stands twice in one map; where the second one stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repeated {
    pub(crate) key: String,
    pub(crate) place: Place,
}

/// A text that is no YAML, or nothing that JSON can say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Error {
    pub(crate) place: Place,
    pub(crate) message: String,
}

/// How plain words are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Words {
    /// As `go-yaml` v2 does: `yes` is true.
    Yaml11,
    /// The same, but `yes`, `on` and their like are texts.
    FewBooleans,
    /// As JSON: numbers stay as they are written, and repeated keys are kept for the reader to
    /// merge, as Go does.
    Json,
}

impl Node {
    /// The value of a key. Of a repeated one, the last.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        let entry = |entry: &&Entry| entry.key == key;
        Some(&self.entries().iter().rfind(entry)?.node)
    }

    /// The entries of a map; none of anything else.
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    pub(crate) fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// How many values it is made of.
    fn size(&self) -> usize {
        1 + match &self.value {
            Value::List(items) => items.iter().map(Self::size).sum(),
            Value::Map(entries) => entries.iter().map(|entry| entry.node.size()).sum(),
            _ => 0,
        }
    }
}

impl Value {
    /// For messages: `the number 5`.
    pub(crate) fn named(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => format!("the word {value}"),
            Self::Number(number) => format!("the number {number}"),
            Self::Text(text) => format!("the text {text:?}"),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a map".to_owned(),
        }
    }
}

impl From<Node> for serde_json::Value {
    fn from(node: Node) -> Self {
        match node.value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(value),
            Value::Number(number) => number.parse().map_or(Self::String(number), Self::Number),
            Value::Text(text) => Self::String(text),
            Value::List(items) => items.into_iter().map(Self::from).collect(),
            Value::Map(entries) => entries
                .into_iter()
                .map(|entry| (entry.key, Self::from(entry.node)))
                .collect(),
        }
    }
}

/// Reads the documents of a text one after the other.
pub(crate) struct Reader<'a> {
    text: &'a str,
    parser: Parser<'a, StrInput<'a>>,
    words: Words,
    /// Values with an anchor, of this document.
    anchors: BTreeMap<usize, Node>,
    /// How many values aliases have repeated.
    copied: usize,
    /// The keys of this document that stand twice, unless they were kept.
    pub(crate) repeated: Vec<Repeated>,
}

type Next<'a> = (Event<'a>, Place);

impl<'a> Reader<'a> {
    pub(crate) fn new(text: &'a str, words: Words) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        // As libyaml, which go-yaml is made of.
        let mut options = granit_parser::options! {
            block_scalar_eof_without_line_feed: true,
            bom_inside_document_as_content: true,
        };
        options.set_emit_comments(false);
        Self {
            text,
            parser: Parser::new_from_str_with_options(text, options),
            words,
            anchors: BTreeMap::new(),
            copied: 0,
            repeated: Vec::new(),
        }
    }

    /// Goes on to the next document; says whether there is one.
    pub(crate) fn next_document(&mut self) -> Result<bool, Error> {
        self.anchors.clear();
        self.repeated.clear();
        loop {
            match self.event()? {
                (Event::DocumentStart(_, Some(version)), place)
                    if self.words == Words::Yaml11 && (version.major, version.minor) != (1, 1) =>
                {
                    let message = "only YAML 1.1 is read: remove the line %YAML";
                    return Err(error(place, message));
                }
                (Event::DocumentStart(..), _) => return Ok(true),
                (Event::StreamEnd, _) => return Ok(false),
                _ => {}
            }
        }
    }

    /// The next value as a whole.
    pub(crate) fn node(&mut self) -> Result<Node, Error> {
        let next = self.event()?;
        self.node_from(next)
    }

    /// The next value. If it is a map, the items of its list `items` are given to `item` one by
    /// one and are left out, if `has_items` says so of the entries before them, which `item` gets
    /// too: a dump of a cluster is one list, and takes many times its size as a whole.
    pub(crate) fn node_by_items(
        &mut self,
        has_items: impl Fn(&[Entry]) -> bool,
        mut item: impl FnMut(&[Entry], Node),
    ) -> Result<Node, Error> {
        let (event, place) = self.event()?;
        let Event::MappingStart(_, 0, _) = event else {
            return self.node_from((event, place));
        };
        let mut entries = Vec::new();
        loop {
            let next = self.event()?;
            if matches!(next.0, Event::MappingEnd) {
                break;
            }
            let key = self.key(next)?;
            let value = self.event()?;
            match (&key, &value.0) {
                (Some((name, _)), Event::SequenceStart(_, 0, _))
                    if name == "items" && has_items(&entries) =>
                {
                    loop {
                        let next = self.event()?;
                        if matches!(next.0, Event::SequenceEnd) {
                            break;
                        }
                        let node = self.node_from(next)?;
                        item(&entries, node);
                    }
                }
                _ => self.entry(&mut entries, key, value)?,
            }
        }
        Ok(Node {
            place,
            value: Value::Map(entries),
            is_literal: false,
        })
    }

    fn event(&mut self) -> Result<Next<'a>, Error> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, place_of(&span))),
            Some(Err(error)) => Err(self.syntax(&error)),
            None => Ok((Event::StreamEnd, Place::default())),
        }
    }

    fn syntax(&self, error: &ScanError) -> Error {
        let marker = error.marker();
        let message = error.kind().to_string();
        let mut place = Place {
            line: marker.line(),
            column: marker.col() + 1,
        };
        if message.contains("tab") {
            // It is in the indentation of one of the next lines; the parser says where the value
            // before it begins.
            let lines = self
                .text
                .lines()
                .enumerate()
                .skip(place.line.saturating_sub(1));
            let column = |line: &str| {
                let indentation = line.len() - line.trim_start().len();
                Some(line.get(..indentation)?.find('\t')? + 1)
            };
            let found = lines
                .into_iter()
                .find_map(|(index, line)| Some((index + 1, column(line)?)));
            if let Some((line, column)) = found {
                place = Place { line, column };
            }
        }
        Error { place, message }
    }

    fn node_from(&mut self, (event, place): Next<'a>) -> Result<Node, Error> {
        let mut is_literal = false;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                is_literal = style == ScalarStyle::Literal;
                let tag = tag.as_deref().map(tag_name);
                let is_plain = style == ScalarStyle::Plain;
                let value = scalar::resolve(&text, tag.as_deref(), is_plain, self.words)
                    .map_err(|message| error(place, message))?;
                (value, anchor)
            }
            Event::SequenceStart(_, anchor, _) => {
                let mut items = Vec::new();
                loop {
                    let next = self.event()?;
                    if matches!(next.0, Event::SequenceEnd) {
                        break;
                    }
                    items.push(self.node_from(next)?);
                }
                (Value::List(items), anchor)
            }
            Event::MappingStart(_, anchor, _) => {
                let mut entries = Vec::new();
                loop {
                    let next = self.event()?;
                    if matches!(next.0, Event::MappingEnd) {
                        break;
                    }
                    let key = self.key(next)?;
                    let value = self.event()?;
                    self.entry(&mut entries, key, value)?;
                }
                (Value::Map(entries), anchor)
            }
            Event::Alias(id) => return self.alias(id, place),
            _ => return Err(error(place, "a value is missing")),
        };
        let node = Node {
            place,
            value,
            is_literal,
        };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn alias(&mut self, id: usize, place: Place) -> Result<Node, Error> {
        let Some(node) = self.anchors.get(&id) else {
            return Err(error(place, "an anchor may not hold itself"));
        };
        self.copied = self.copied.saturating_add(node.size());
        if self.copied > MAX_REPEATED_NODES {
            return Err(error(place, "aliases repeat too many values"));
        }
        Ok(node.clone())
    }

    /// A key; `None` for the one that merges another map.
    fn key(&mut self, next: Next<'a>) -> Result<Option<(String, Place)>, Error> {
        let place = next.1;
        if let Event::Scalar(text, ScalarStyle::Plain, ..) = &next.0
            && text == "<<"
            && self.words != Words::Json
        {
            return Ok(None);
        }
        let key = match self.node_from(next)?.value {
            Value::Text(text) | Value::Number(text) => text,
            Value::Bool(value) => value.to_string(),
            Value::Null => return Err(error(place, "a key is missing, or null")),
            Value::List(_) | Value::Map(_) => {
                return Err(error(place, "a key must be a word, not a list or a map"));
            }
        };
        Ok(Some((key, place)))
    }

    fn entry(
        &mut self,
        entries: &mut Vec<Entry>,
        key: Option<(String, Place)>,
        value: Next<'a>,
    ) -> Result<(), Error> {
        let node = self.node_from(value)?;
        match key {
            Some((key, place)) => self.insert(entries, Entry { key, place, node }),
            None => self.merge(entries, node)?,
        }
        Ok(())
    }

    fn insert(&mut self, entries: &mut Vec<Entry>, entry: Entry) {
        let known = entries.iter_mut().find(|known| known.key == entry.key);
        match known {
            Some(known) if self.words != Words::Json => {
                self.repeated.push(Repeated {
                    key: entry.key.clone(),
                    place: entry.place,
                });
                *known = entry;
            }
            _ => entries.push(entry),
        }
    }

    /// `<<: *other`, where `other` is a map or a list of maps, of which the first counts.
    fn merge(&mut self, entries: &mut Vec<Entry>, node: Node) -> Result<(), Error> {
        let place = node.place;
        let maps = match node.value {
            Value::Map(more) => vec![more],
            Value::List(items) => {
                let map = |item: Node| match item.value {
                    Value::Map(more) => Some(more),
                    _ => None,
                };
                let maps: Option<Vec<_>> = items.into_iter().rev().map(map).collect();
                maps.ok_or_else(|| error(place, "<< wants a map, or a list of maps"))?
            }
            _ => return Err(error(place, "<< wants a map, or a list of maps")),
        };
        for entry in maps.into_iter().flatten() {
            self.insert(entries, entry);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("words", &self.words)
            .finish()
    }
}

fn error(place: Place, message: impl Into<String>) -> Error {
    Error {
        place,
        message: message.into(),
    }
}

fn place_of(span: &Span) -> Place {
    Place {
        line: span.start.line(),
        column: span.start.col() + 1,
    }
}

/// `!!int` as `int`, and any other tag with its signs.
fn tag_name(tag: &Tag) -> String {
    tag.core_suffix()
        .map_or_else(|| format!("!{}", tag.suffix()), str::to_owned)
}
