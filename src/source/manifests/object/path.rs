// SPDX-License-Identifier: Apache-2.0
//! Paths into objects, and parts that are left out of them.

use serde_json::Value;

/// A step from a value into a part of it.
#[derive(Debug)]
pub(super) enum PathStep {
    Field(String),
    Item(usize),
}

/// The steps to a field that no type knows.
pub(super) fn ignored_steps(path: &serde_ignored::Path<'_>) -> Vec<PathStep> {
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
pub(super) type RemovedItem = (String, usize);

/// What was taken out of a value.
pub(super) enum TakenOut {
    /// It moves the items behind it.
    Item(RemovedItem),
    /// Something that moves nothing.
    InPlace,
}

/// Takes the innermost list item on the way out of the value, or a single label or annotation.
/// `None`: nothing can be left out without changing the meaning of the rest.
pub(super) fn take_out(value: &mut Value, steps: &[PathStep]) -> Option<TakenOut> {
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
    Some(TakenOut::Item((path_of(way), *index)))
}

/// `spec.ports[1].port`, and `metadata.labels[app.kubernetes.io/name]`.
pub(super) fn path_of(steps: &[PathStep]) -> String {
    let mut path = String::new();
    for step in steps {
        match step {
            PathStep::Field(name) if name.contains(['.', '/', '[']) => {
                path = format!("{path}[{name}]");
            }
            PathStep::Field(name) if path.is_empty() => path.push_str(name),
            PathStep::Field(name) => path = format!("{path}.{name}"),
            PathStep::Item(index) => path = format!("{path}[{index}]"),
        }
    }
    path
}

/// A path as it was before items were removed, one after the other.
pub(super) fn restored(mut path: String, removed: &[RemovedItem]) -> String {
    for (list, gone) in removed.iter().rev() {
        let Some((index, rest)) = path
            .strip_prefix(list.as_str())
            .and_then(|rest| rest.strip_prefix('['))
            .and_then(|rest| rest.split_once(']'))
        else {
            continue;
        };
        if let Ok(index) = index.parse::<usize>()
            && index >= *gone
        {
            path = format!("{list}[{}]{rest}", index + 1);
        }
    }
    path
}

/// What `serde` says of a wrong type, in the words of an operator.
pub(super) fn plain_words(error: &str) -> String {
    let said = ["invalid type: ", "invalid value: "]
        .iter()
        .find_map(|start| error.strip_prefix(start)?.split_once(", expected "));
    let Some((found, wanted)) = said else {
        return error.to_owned();
    };
    let wanted = match wanted {
        "a string" => "a text",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "i16" | "i32" | "i64" | "u16" | "u32" | "u64" => "a whole number",
        "f32" | "f64" => "a number",
        text if text.contains("IntOrString") => "a number or a text",
        // The name of a type.
        text if text.starts_with(|c: char| c.is_ascii_uppercase()) => "a map",
        text => text,
    };
    let found = match found.split_once(' ') {
        Some(("string", text)) => format!("the text {text}"),
        Some(("integer", number)) => format!("the number {}", number.trim_matches('`')),
        Some(("floating", number)) => {
            let number = number.trim_start_matches("point ");
            format!("the number {}", number.trim_matches('`'))
        }
        Some(("boolean", word)) => format!("the word {}", word.trim_matches('`')),
        _ if found == "sequence" => "a list".to_owned(),
        _ if found == "map" => "a map".to_owned(),
        _ => found.to_owned(),
    };
    format!("want {wanted}, not {found}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(parts: &[&str]) -> Vec<PathStep> {
        let step = |part: &&str| match part.parse() {
            Ok(index) => PathStep::Item(index),
            Err(_) => PathStep::Field((*part).to_owned()),
        };
        parts.iter().map(step).collect()
    }

    #[test]
    fn names_with_dots_stand_in_brackets() {
        for (parts, path) in [
            (&["spec", "ports", "1", "port"][..], "spec.ports[1].port"),
            (
                &["metadata", "labels", "app.kubernetes.io/name"],
                "metadata.labels[app.kubernetes.io/name]",
            ),
        ] {
            assert_eq!(path_of(&steps(parts)), path);
        }
    }

    #[test]
    fn items_have_the_numbers_of_the_file() {
        let gone = |list: &str, index| (list.to_owned(), index);
        let removed = [
            gone("endpoints", 0),
            // It is the third one of the file's second endpoint.
            gone("endpoints[0].addresses", 2),
            gone("endpoints", 1),
        ];
        for (path, expected) in [
            ("endpoints[0].addresses[1]", "endpoints[1].addresses[1]"),
            ("endpoints[0].addresses[2]", "endpoints[1].addresses[3]"),
            ("endpoints[1].addresses[2]", "endpoints[3].addresses[2]"),
            (
                "metadata.annotations[a.b/c.d]",
                "metadata.annotations[a.b/c.d]",
            ),
            ("spec.clusterIP", "spec.clusterIP"),
        ] {
            assert_eq!(restored(path.to_owned(), &removed), expected, "{path}");
        }
    }

    #[test]
    fn types_are_named_for_operators() {
        for (error, expected) in [
            (
                "invalid type: string \"eighty\", expected i32",
                "want a whole number, not the text \"eighty\"",
            ),
            (
                "invalid type: integer `5`, expected a string",
                "want a text, not the number 5",
            ),
            (
                "invalid type: map, expected a sequence",
                "want a list, not a map",
            ),
            (
                "invalid type: boolean `true`, expected ServiceSpec",
                "want a map, not the word true",
            ),
            ("something else", "something else"),
        ] {
            assert_eq!(plain_words(error), expected);
        }
    }
}
