// SPDX-License-Identifier: Apache-2.0
//! What the documents, alerts and the Dockerfile of this repository point to is there: links,
//! headings, paths, variables.
#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders whose name at the start of a word in backticks makes it a path of the repository.
const FOLDERS: [&str; 7] = [
    "hack/", "deploy/", "docs/", "tests/", "src/", "crates/", ".ci/",
];
const ALERTS: &str = "deploy/prometheus/alerts.yaml";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !path.is_symlink() && name != "target" && name != ".git" {
            documents(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            into.push(path);
        }
    }
}

/// Lines outside of code blocks.
fn prose(text: &str) -> Vec<&str> {
    let mut is_code = false;
    text.lines()
        .filter(|line| {
            let is_fence = line.trim_start().starts_with("```");
            is_code ^= is_fence;
            !is_code && !is_fence
        })
        .collect()
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let headings = prose(text).into_iter().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title
                .chars()
                .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
            let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
            let count = seen.entry(anchor.clone()).or_default();
            *count += 1;
            if *count == 1 {
                anchor
            } else {
                format!("{anchor}-{}", *count - 1)
            }
        })
        .collect()
}

/// What is wrong with a link in a document, if anything.
fn broken(document: &Path, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = if path.is_empty() {
        document.to_owned()
    } else {
        document.parent().unwrap().join(path)
    };
    if !target.exists() {
        return Some(format!("{}: no file {link}", document.display()));
    }
    let is_there = anchor.is_empty()
        || anchors(&fs::read_to_string(&target).unwrap())
            .iter()
            .any(|other| other == anchor);
    (!is_there).then(|| format!("{}: no heading {link}", document.display()))
}

fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', ' ']).next())
}

#[test]
fn links_lead_somewhere() {
    let mut found = Vec::new();
    documents(root(), &mut found);
    assert!(found.len() > 8, "{found:?}");
    let (mut wrong, mut count) = (Vec::new(), 0);
    for document in &found {
        let text = fs::read_to_string(document).unwrap();
        for link in prose(&text).into_iter().flat_map(links) {
            count += 1;
            wrong.extend(broken(document, link));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 10, "{count} links");
}

#[test]
fn paths_in_backticks_exist() {
    let mut found = Vec::new();
    documents(root(), &mut found);
    let (mut wrong, mut count) = (Vec::new(), 0);
    for document in &found {
        let text = fs::read_to_string(document).unwrap();
        for line in prose(&text) {
            for words in line.split('`').skip(1).step_by(2) {
                let word = words.split_whitespace().next().unwrap_or_default();
                let is_placeholder =
                    |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_uppercase());
                let is_pattern =
                    word.contains(['*', '{', '<', '$']) || word.split('/').any(is_placeholder);
                if is_pattern || !FOLDERS.iter().any(|folder| word.starts_with(folder)) {
                    continue;
                }
                count += 1;
                let path = root().join(word.split('#').next().unwrap_or_default());
                // `tests/cluster_ipvs` is a folder and `tests/cluster_ipvs.rs`.
                if !path.exists() && !path.with_extension("rs").exists() {
                    wrong.push(format!("{}: {word}", document.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 20, "{count} paths");
}

#[test]
fn alerts_lead_to_headings() {
    let text = fs::read_to_string(root().join(ALERTS)).unwrap();
    let place = |line: &str| {
        line.split_once("/blob/main/")
            .map(|(_, place)| place.to_owned())
    };
    let places: Vec<String> = text
        .lines()
        .filter(|line| line.contains("runbook_url:"))
        .filter_map(place)
        .collect();
    assert_eq!(places.len(), text.matches("- alert: ").count());
    // As if they stood in a document at the top.
    let top = root().join("README.md");
    let wrong: Vec<String> = places
        .iter()
        .filter_map(|place| broken(&top, place))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_broken_link_is_found() {
    let readme = root().join("README.md");
    assert!(broken(&readme, "docs/no-such-file.md").is_some());
    assert!(broken(&readme, "ARCHITECTURE.md#no-such-heading").is_some());
    assert_eq!(
        broken(&readme, "docs/troubleshooting.md#the-proxy-is-down"),
        None
    );
    assert_eq!(
        anchors("# A `b`, c\n# A b c\n```\n# no\n```\n"),
        ["a-b-c", "a-b-c-1"]
    );
}

/// A variable that its stage does not declare is empty: builds for two platforms would share their
/// files.
#[test]
fn image_is_made_of_what_is_there() {
    let text = fs::read_to_string(root().join("deploy/image/Dockerfile")).unwrap();
    let text = text.replace("\\\n", " ");
    let mut wrong = Vec::new();
    let (mut global, mut declared, mut stages) = (Vec::new(), Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("ARG") if stages.is_empty() => global.extend(words.map(name_of_argument)),
            Some("ARG") => declared.extend(words.map(name_of_argument)),
            Some("FROM") => {
                stages.extend(words.last());
                // The line itself sees those that were declared before.
                wrong.extend(variables(line).filter(|name| !global.contains(name)));
                declared.clear();
                continue;
            }
            Some("COPY") if !line.contains("--from=") => {
                let paths: Vec<&str> = words.collect();
                let sources = paths.split_last().map_or(&[][..], |(_, sources)| sources);
                wrong.extend(sources.iter().filter(|path| !root().join(path).exists()));
            }
            Some("COPY") => {
                let stage = words.find_map(|word| word.strip_prefix("--from="));
                wrong.extend(stage.filter(|stage| !stages.contains(stage)));
            }
            _ => {}
        }
        if !line.starts_with('#') {
            wrong.extend(variables(line).filter(|name| !declared.contains(name)));
        }
    }
    assert_eq!(stages.len(), 3);
    assert_eq!(wrong, [""; 0]);
}

fn name_of_argument(word: &str) -> &str {
    word.split_once('=').map_or(word, |(name, _)| name)
}

fn variables(line: &str) -> impl Iterator<Item = &str> {
    line.split("${")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once('}')?.0))
}
