// SPDX-License-Identifier: Apache-2.0
//! Which Services have metrics of their own (`--service-metrics-namespaces`,
//! `--service-metrics-selector`): none unless the operator says so.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use kube::core::{Expression, Selector, SelectorExt as _};

/// The word for all namespaces.
const ALL: &str = "*";

/// A choice of Services. The default has none of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Names, or the word for all.
    pub namespaces: BTreeSet<String>,
    /// Given alone it counts in all namespaces.
    pub labels: Option<LabelSelector>,
}

impl Counted {
    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty() && self.labels.is_none()
    }

    /// Whether a Service is one of them.
    pub fn has(&self, namespace: &str, labels: Option<&BTreeMap<String, String>>) -> bool {
        if self.is_empty() {
            return false;
        }
        let is_in_namespace = self.namespaces.is_empty()
            || self.namespaces.contains(namespace)
            || self.namespaces.contains(ALL);
        let none = BTreeMap::new();
        let labels = labels.unwrap_or(&none);
        let selector = self.labels.as_ref();
        is_in_namespace && selector.is_none_or(|wanted| wanted.0.matches(labels))
    }
}

/// Whether a text can be the name of a namespace, or stands for all of them.
pub fn is_namespace(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    text == ALL
        || ((1..=63).contains(&text.len())
            && text.bytes().all(is_inner)
            && !text.starts_with('-')
            && !text.ends_with('-'))
}

/// A label selector in the form that kubectl takes: `app=web,tier in (front, back),!test`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSelector(Selector);

/// Text that is no label selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a label selector, such as app=web,tier in (front,back),!test")]
pub struct NoSelector;

impl FromStr for LabelSelector {
    type Err = NoSelector;

    fn from_str(text: &str) -> Result<Self, NoSelector> {
        let parts = requirements(text)?;
        let expressions = parts.into_iter().map(expression);
        let expressions = expressions.collect::<Result<Vec<_>, _>>()?;
        Ok(Self(expressions.into_iter().collect()))
    }
}

/// The parts between commas that stand outside of parentheses.
fn requirements(text: &str) -> Result<Vec<&str>, NoSelector> {
    let (mut parts, mut begin, mut is_inside) = (Vec::new(), 0, false);
    for (at, sign) in text.char_indices() {
        match sign {
            '(' if !is_inside => is_inside = true,
            ')' if is_inside => is_inside = false,
            '(' | ')' => return Err(NoSelector),
            ',' if !is_inside => {
                parts.push(text.get(begin..at).unwrap_or_default());
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text.get(begin..).unwrap_or_default());
    if is_inside {
        Err(NoSelector)
    } else {
        Ok(parts)
    }
}

fn expression(part: &str) -> Result<Expression, NoSelector> {
    let part = part.trim();
    if let Some(key) = part.strip_prefix('!') {
        return Ok(Expression::DoesNotExist(key_of(key)?));
    }
    if let Some((head, values)) = part.split_once('(') {
        let values = values.strip_suffix(')').ok_or(NoSelector)?;
        let values = values.split(',').map(value_of);
        let values = values.collect::<Result<BTreeSet<_>, _>>()?;
        return match head.split_whitespace().collect::<Vec<_>>().as_slice() {
            [key, "in"] => Ok(Expression::In(key_of(key)?, values)),
            [key, "notin"] => Ok(Expression::NotIn(key_of(key)?, values)),
            _ => Err(NoSelector),
        };
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Ok(Expression::NotEqual(key_of(key)?, value_of(value)?));
    }
    if let Some((key, value)) = part.split_once('=') {
        let value = value.strip_prefix('=').unwrap_or(value);
        return Ok(Expression::Equal(key_of(key)?, value_of(value)?));
    }
    Ok(Expression::Exists(key_of(part)?))
}

/// A label's key: a name, or a DNS domain and a name.
fn key_of(text: &str) -> Result<String, NoSelector> {
    let text = text.trim();
    let (domain, name) = text.split_once('/').unwrap_or(("a", text));
    let is_domain = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
    let is_good = !domain.is_empty()
        && domain.len() <= 253
        && domain.bytes().all(is_domain)
        && !name.is_empty()
        && is_label_text(name);
    is_good.then(|| text.to_owned()).ok_or(NoSelector)
}

/// A label's value, which may be empty.
fn value_of(text: &str) -> Result<String, NoSelector> {
    let text = text.trim();
    is_label_text(text)
        .then(|| text.to_owned())
        .ok_or(NoSelector)
}

fn is_label_text(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_end = |sign: char| sign.is_ascii_alphanumeric();
    text.is_empty()
        || (text.len() <= 63
            && text.bytes().all(is_inner)
            && text.starts_with(is_end)
            && text.ends_with(is_end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn selectors_choose_as_kubectl_does() {
        let web = labels(&[("app", "web"), ("tier", "front"), ("example.com/a", "")]);
        for (text, chosen) in [
            ("app=web", true),
            ("app==web", true),
            ("app = web", true),
            ("app=api", false),
            ("app!=api", true),
            ("app!=web", false),
            // What lacks the label is not equal, and not in.
            ("team!=a", true),
            ("team notin (a, b)", true),
            ("tier in (front,back)", true),
            ("tier in (back)", false),
            ("tier notin (front)", false),
            ("app", true),
            ("team", false),
            ("!team", true),
            ("!app", false),
            ("example.com/a", true),
            ("example.com/a=", true),
            ("app=web,tier in (front,back),!team", true),
            ("app=web,team", false),
        ] {
            let selector: LabelSelector = text.parse().unwrap();
            assert_eq!(selector.0.matches(&web), chosen, "{text}");
        }
    }

    #[test]
    fn other_texts_are_no_selectors() {
        for text in [
            "",
            ",",
            "app=web,",
            "=web",
            "app in",
            "app in (a",
            "app in a)",
            "app of (a)",
            "a b",
            "app=a=b",
            "app=-a",
            "app/=a",
            "/app=a",
            "app in (a),(b)",
            "app=ü",
            "app>1",
        ] {
            assert_eq!(text.parse::<LabelSelector>(), Err(NoSelector), "{text:?}");
        }
    }

    #[test]
    fn nothing_is_counted_unless_somebody_says_so() {
        let web = labels(&[("app", "web")]);
        let counted = |namespaces: &[&str], selector: &str| Counted {
            namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
            labels: selector.parse().ok(),
        };
        for (namespaces, selector, in_shop, elsewhere) in [
            (&[][..], "", false, false),
            (&["shop"], "", true, false),
            (&["*"], "", true, true),
            (&[], "app=web", true, true),
            (&["shop"], "app=web", true, false),
            (&["shop"], "app=api", false, false),
        ] {
            let counted = counted(namespaces, selector);
            assert_eq!(counted.has("shop", Some(&web)), in_shop, "{counted:?}");
            assert_eq!(counted.has("other", Some(&web)), elsewhere, "{counted:?}");
        }
        assert!(!counted(&[], "app").has("shop", None));
    }

    #[test]
    fn names_of_namespaces_are_dns_labels() {
        for (text, is_one) in [
            ("shop", true),
            ("kube-system", true),
            ("*", true),
            ("", false),
            ("Shop", false),
            ("a.b", false),
            ("-a", false),
            ("a*", false),
        ] {
            assert_eq!(is_namespace(text), is_one, "{text:?}");
        }
    }
}
