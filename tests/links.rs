// SPDX-License-Identifier: Apache-2.0
//! What the documents, alerts and the image of this repository point to is there: links,
//! headings, paths, pins.
#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
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

/// The base of the image is pinned for both architectures: the same packages, each with a version
/// and a checksum of its own.
#[test]
fn image_is_made_of_pinned_packages() {
    let text = fs::read_to_string(root().join("deploy/image/packages")).unwrap();
    let mut names: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut sums = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        let [arch, name, version, sum] = words[..] else {
            panic!("not `architecture package version checksum`: {line}")
        };
        assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{line}");
        assert!(
            sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{line}"
        );
        assert!(sums.insert((arch, sum)), "pinned twice: {line}");
        names.entry(arch).or_default().push(name);
    }
    let architectures: Vec<_> = names.keys().copied().collect();
    assert_eq!(architectures, ["amd64", "arm64"]);
    assert_eq!(names["amd64"], names["arm64"]);
    for name in ["iptables", "kmod", "libc6", "libgcc-s1", "base-files"] {
        assert!(names["amd64"].contains(&name), "{name}");
    }
}
