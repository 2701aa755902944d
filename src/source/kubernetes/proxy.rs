// SPDX-License-Identifier: Apache-2.0
//! Proxies between us and the API server: `proxy-url` of a kubeconfig, else `HTTPS_PROXY`,
//! `HTTP_PROXY` and `NO_PROXY` as Go reads them.

use std::net::IpAddr;

use http::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};

use super::settings::Unusable;

/// The proxy on the way to a server, if there is one.
pub(super) fn choose(
    server: &Uri,
    configured: Option<&str>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Option<Intercept>, Unusable> {
    let (proxy, matcher) = if let Some(url) = configured {
        (url.to_owned(), Matcher::builder().all(url))
    } else {
        let either = |upper: &str| {
            let given = |text: &String| !text.is_empty();
            environment(upper)
                .filter(given)
                .or_else(|| environment(&upper.to_lowercase()).filter(given))
        };
        let name = match server.scheme_str() {
            Some("https") => "HTTPS_PROXY",
            _ => "HTTP_PROXY",
        };
        let Some(url) = either(name).filter(|_| !is_local(server)) else {
            return Ok(None);
        };
        let exceptions = NoProxy::parse(&either("NO_PROXY").unwrap_or_default());
        if exceptions.contains(server) {
            return Ok(None);
        }
        let matcher = Matcher::builder().all(url.clone());
        (url, matcher)
    };
    let unusable = || {
        Unusable::other(format!(
            "proxy-url {:?}: not the URL of a proxy (http, https, socks5)",
            redacted(&proxy)
        ))
    };
    let found = matcher.build().intercept(server).ok_or_else(unusable)?;
    match found.uri().scheme_str() {
        Some("http" | "https" | "socks5" | "socks5h") => Ok(Some(found)),
        _ => Err(unusable()),
    }
}

/// Go never asks a proxy of the environment for the host itself.
fn is_local(server: &Uri) -> bool {
    let host = host(server);
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// The host of a URL, without the brackets of an IPv6 address.
pub(super) fn host(url: &Uri) -> &str {
    let host = url.host().unwrap_or_default();
    host.trim_start_matches('[').trim_end_matches(']')
}

/// A URL without the user and password in it.
pub(super) fn redacted(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let end = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(end).unwrap_or((rest, ""));
    let (secret, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let hidden = if secret.is_empty() { "" } else { "***@" };
    let separator = if scheme.is_empty() { "" } else { "://" };
    format!("{scheme}{separator}{hidden}{host}{path}")
}

/// `NO_PROXY`: names with all that is below them, addresses, ranges, each with a port or without.
#[derive(Debug)]
struct NoProxy(Vec<String>);

impl NoProxy {
    fn parse(text: &str) -> Self {
        let items = text.split(',').map(|item| item.trim().to_lowercase());
        Self(items.filter(|item| !item.is_empty()).collect())
    }

    fn contains(&self, server: &Uri) -> bool {
        let host = host(server).to_lowercase();
        let address: Option<IpAddr> = host.parse().ok();
        let port = server.port_u16().unwrap_or(match server.scheme_str() {
            Some("https") => 443,
            _ => 80,
        });
        self.0.iter().any(|item| {
            if item == "*" {
                return true;
            }
            if let Ok(range) = item.parse::<ipnet::IpNet>() {
                return address.is_some_and(|address| range.contains(&address));
            }
            let (name, wanted) = match item.rsplit_once(':') {
                Some((name, number)) if item.parse::<IpAddr>().is_err() => {
                    (name, number.parse::<u16>().ok())
                }
                _ => (item.as_str(), None),
            };
            let name = name.trim_start_matches('[').trim_end_matches(']');
            if wanted.is_some_and(|wanted| wanted != port) {
                return false;
            }
            if let Ok(one) = name.parse::<IpAddr>() {
                return address == Some(one);
            }
            let name = name.strip_prefix('*').unwrap_or(name);
            let below = name.strip_prefix('.').unwrap_or(name);
            let is_below = host
                .strip_suffix(below)
                .is_some_and(|rest| rest.ends_with('.'));
            is_below || (!name.starts_with('.') && host == below)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(server: &str, environment: &[(&str, &str)]) -> Option<String> {
        let server: Uri = server.parse().unwrap();
        let get = |name: &str| {
            let found = environment.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let found = choose(&server, None, get).unwrap();
        found.map(|proxy| proxy.uri().to_string())
    }

    #[test]
    fn the_environment_counts_as_in_go() {
        let proxy = ("HTTPS_PROXY", "http://proxy:3128");
        let used = Some("http://proxy:3128/".to_owned());
        assert_eq!(chosen("https://api:6443", &[proxy]), used);
        assert_eq!(
            chosen("https://api:6443", &[("https_proxy", proxy.1)]),
            used
        );
        assert_eq!(chosen("http://api:8080", &[proxy]), None);
        assert_eq!(chosen("http://api:8080", &[("HTTP_PROXY", proxy.1)]), used);
        for local in [
            "https://localhost",
            "https://127.1.2.3",
            "https://[::1]:6443",
        ] {
            assert_eq!(chosen(local, &[proxy]), None, "{local}");
        }
        assert_eq!(chosen("https://api", &[("HTTPS_PROXY", "")]), None);
    }

    #[test]
    fn exceptions_are_names_addresses_and_ranges() {
        let is_excepted = |server: &str, exceptions: &str| {
            NoProxy::parse(exceptions).contains(&server.parse().unwrap())
        };
        for (server, exceptions) in [
            ("https://api.example.com", "example.com"),
            ("https://api.example.com", ".example.com"),
            ("https://api.example.com", "*.example.com"),
            ("https://API.example.com", " other, api.EXAMPLE.com "),
            ("https://example.com", "example.com"),
            ("https://example.com", "*"),
            ("https://10.96.0.1", "10.96.0.0/12"),
            ("https://10.96.0.1:443", "10.96.0.1"),
            ("https://10.96.0.1:6443", "10.96.0.1:6443"),
            ("https://[fd00::1]:6443", "fd00::/8"),
            ("https://[fd00::1]:6443", "fd00::1"),
            ("https://[fd00::1]:6443", "[fd00::1]:6443"),
        ] {
            assert!(is_excepted(server, exceptions), "{server} {exceptions}");
        }
        for (server, exceptions) in [
            ("https://example.com", ".example.com"),
            ("https://myexample.com", "example.com"),
            ("https://example.com", "example.com:8443"),
            ("https://10.0.0.1", "10.96.0.0/12"),
            ("https://example.com", ""),
        ] {
            assert!(!is_excepted(server, exceptions), "{server} {exceptions}");
        }
    }

    #[test]
    fn a_proxy_of_another_kind_is_refused_without_its_password() {
        let server = "https://api:6443".parse().unwrap();
        for url in ["ftp://user:hidden@proxy", "user:hidden@pro xy"] {
            let error = choose(&server, Some(url), |_| None)
                .unwrap_err()
                .to_string();
            assert!(!error.contains("hidden"), "{error}");
            assert!(error.contains("http, https, socks5"), "{error}");
        }
        let proxy = choose(&server, Some("socks5://u:p@proxy"), |_| None);
        assert_eq!(proxy.unwrap().unwrap().raw_auth(), Some(("u", "p")));
    }

    #[test]
    fn urls_are_shown_without_passwords() {
        assert_eq!(redacted("http://u:p@ss@proxy:1/x"), "http://***@proxy:1/x");
        assert_eq!(redacted("socks5://proxy"), "socks5://proxy");
        assert_eq!(redacted("u:p@proxy"), "***@proxy");
    }
}
