// SPDX-License-Identifier: Apache-2.0
//! `kube-proxy-rs explain`: what connections to a Service meet on this node, and why. The running
//! proxy answers; the command prints.

mod kernel;
mod rules;
mod text;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::local;
use super::output::print;
use super::screen::Paint;
use super::status::Overview;
use crate::clock::Clock;
use crate::config::OutputFormat;
use crate::dataplane::exec::{Exec as _, System};
use crate::reconcile::show::{Explain, From, Target};
use kpr_core::model::{Protocol, ProxyMode, ServiceName};
use kpr_core::plan::explain::Place;
pub(super) use text::Explanations;

/// Exit code of `explain` if no connection is answered.
const EXIT_UNANSWERED: u8 = 2;

/// Answers a query such as `target=web.shop:80` and `from=pod`. Fails with what is wrong with it.
pub(super) async fn answer(
    overview: &Overview,
    query: &[(String, String)],
) -> Result<Value, String> {
    let mut wanted = Explain {
        target: Target::Service(ServiceName::new("", ""), None),
        from: From::Everywhere,
    };
    let mut has_target = false;
    for (name, value) in query {
        match name.as_str() {
            "target" => {
                wanted.target = target(value)?;
                has_target = true;
            }
            "from" => wanted.from = from(value)?,
            _ => return Err(format!("unknown parameter {name:?}: target, from")),
        }
    }
    if !has_target {
        return Err("target is missing: SERVICE[.NAMESPACE][:PORT] or ADDRESS:PORT[/PROTO]".into());
    }
    let client = match wanted.from {
        From::Address(client) => Some(client),
        _ => None,
    };
    let explained = overview.state.explain(wanted).await;
    let explained = explained.ok_or("the sync loop is busy, try again")?;
    let explained = explained.map_err(|error| error.to_string())?;
    let mut value = serde_json::to_value(explained).map_err(|error| error.to_string())?;
    if let Some((backend, _)) = overview.iptables.get()
        && overview.mode == ProxyMode::IPTABLES.as_str()
    {
        add_backend(&mut value, backend);
    }
    let is_ipvs = overview.mode == ProxyMode::IPVS.as_str();
    // Reading tables of the kernel takes its time, which is not the servers'.
    let reading = super::blocking(move || {
        kernel::add(&mut value, client, is_ipvs);
        Ok(value)
    });
    reading.await.map_err(|error| error.to_string())
}

/// Says whose rules to look at.
fn add_backend(explained: &mut Value, backend: &str) {
    for explanation in explained.as_array_mut().into_iter().flatten() {
        if let Value::Object(fields) = explanation {
            fields.insert("iptablesBackend".to_owned(), json!(backend));
        }
    }
}

/// Adds the rules that the kernel has now, as the proxy's iptables prints them, if rules serve.
fn add_rules(explained: &mut Value) {
    let exec = System::new(Clock::system(), System::DEFAULT_DEADLINE);
    let mut saved = BTreeMap::new();
    for explanation in explained.as_array_mut().into_iter().flatten() {
        let place = explanation["place"].as_str().and_then(parse_place);
        let backend = explanation["iptablesBackend"].as_str();
        let (Some(place), Some(backend)) = (place, backend) else {
            continue;
        };
        let name = explanation["service"].as_str().unwrap_or_default();
        let name = name.split([':', ' ']).next().unwrap_or_default();
        let program = match place.address {
            IpAddr::V4(_) => format!("iptables-{backend}-save"),
            IpAddr::V6(_) => format!("ip6tables-{backend}-save"),
        };
        let saved = saved.entry(program).or_insert_with_key(|program| {
            // Without it the proxy's own account stands alone.
            ["filter", "nat"].map(|table| {
                let output = exec.run(program, &["-t", table], &[]);
                let stdout = output.map(|output| output.stdout).unwrap_or_default();
                String::from_utf8_lossy(&stdout).into_owned()
            })
        });
        let [filter, nat] = saved;
        let refusals = rules::of(filter, place, name).into_iter();
        let refusals = refusals.map(|rule| format!("-t filter {rule}"));
        let rules: Vec<String> = refusals.chain(rules::of(nat, place, name)).collect();
        if let Value::Object(fields) = explanation {
            fields.insert("rules".to_owned(), serde_json::json!(rules));
        }
    }
}

/// `TCP 10.96.0.1:80`
fn parse_place(text: &str) -> Option<Place> {
    let (protocol, socket) = text.split_once(' ')?;
    let socket: SocketAddr = socket.parse().ok()?;
    Some(Place {
        address: socket.ip(),
        port: socket.port(),
        protocol: protocol.parse().ok()?,
    })
}

fn from(text: &str) -> Result<From, String> {
    match text {
        "" => Ok(From::Everywhere),
        "pod" => Ok(From::Pod),
        "node" => Ok(From::Node),
        "outside" => Ok(From::Outside),
        address => address
            .parse()
            .map(From::Address)
            .map_err(|_error| format!("from {text:?}: want pod, node, outside or an IP address")),
    }
}

fn target(text: &str) -> Result<Target, String> {
    let (place, protocol) = match text.rsplit_once('/') {
        Some((place, protocol)) => (place, Some(protocol)),
        None => (text, None),
    };
    if let Ok(socket) = place.parse::<SocketAddr>() {
        let protocol = match protocol {
            None => Protocol::Tcp,
            Some(name) => name.to_uppercase().parse().map_err(|_error| {
                format!("target {text:?}: want tcp, udp or sctp after the slash")
            })?,
        };
        return Ok(Target::Place(Place {
            address: socket.ip(),
            port: socket.port(),
            protocol,
        }));
    }
    if place.parse::<IpAddr>().is_ok() {
        return Err(format!("target {text:?}: want a port behind the address"));
    }
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => {
            let port = port
                .parse()
                .map_err(|_error| format!("target {text:?}: want a port number"))?;
            (name, Some(port))
        }
        None => (text, None),
    };
    let (name, namespace) = name.split_once('.').unwrap_or((name, "default"));
    // As in names that the cluster's DNS answers.
    let namespace = namespace.split('.').next().unwrap_or(namespace);
    if name.is_empty() || namespace.is_empty() || text.contains('/') {
        let forms = "SERVICE[.NAMESPACE][:PORT] or ADDRESS:PORT[/PROTO]";
        return Err(format!("target {text:?}: want {forms}"));
    }
    Ok(Target::Service(ServiceName::new(namespace, name), port))
}

/// Asks the running proxy, and prints its answer.
pub(super) async fn command(
    target: &str,
    from: Option<&str>,
    output: OutputFormat,
) -> anyhow::Result<ExitCode> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("target", target);
    if let Some(from) = from {
        query.append_pair("from", from);
    }
    let answer = local::ask(&format!("/explain?{}", query.finish())).await?;
    let mut value: Value = serde_json::from_str(&answer)?;
    add_rules(&mut value);
    let explained = Explanations::of(value.clone(), Paint::for_stdout())?;
    match output {
        OutputFormat::Text if explained.is_empty() => {
            anyhow::bail!("no Service {target} is known to the proxy, or it has no such port")
        }
        OutputFormat::Text => print(&explained)?,
        OutputFormat::Json => print(format_args!("{}\n", serde_json::to_string_pretty(&value)?))?,
        OutputFormat::Yaml => print(serde_saphyr::to_string(&value)?)?,
    }
    Ok(if explained.is_any_answered() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_UNANSWERED)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_services_or_places() {
        let service =
            |namespace, name, port| Ok(Target::Service(ServiceName::new(namespace, name), port));
        let place = |socket: &str, protocol| {
            let socket: SocketAddr = socket.parse().unwrap();
            Ok(Target::Place(Place {
                address: socket.ip(),
                port: socket.port(),
                protocol,
            }))
        };
        for (text, wanted) in [
            ("web", service("default", "web", None)),
            ("web:80", service("default", "web", Some(80))),
            ("web.shop", service("shop", "web", None)),
            ("web.shop:80", service("shop", "web", Some(80))),
            (
                "web.shop.svc.cluster.local:80",
                service("shop", "web", Some(80)),
            ),
            ("10.96.0.1:80", place("10.96.0.1:80", Protocol::Tcp)),
            ("10.96.0.1:80/udp", place("10.96.0.1:80", Protocol::Udp)),
            ("[fd00::1]:53/SCTP", place("[fd00::1]:53", Protocol::Sctp)),
        ] {
            assert_eq!(target(text), wanted, "{text}");
        }
        for text in [
            "",
            ".shop",
            "web.",
            "web:http",
            "10.96.0.1",
            "fd00::1",
            "a/b",
            "10.96.0.1:80/x",
        ] {
            let error = target(text).unwrap_err();
            assert!(
                error.starts_with(&format!("target {text:?}: want ")),
                "{error}"
            );
        }
    }

    #[test]
    fn clients_are_words_or_addresses() {
        assert_eq!(from("pod"), Ok(From::Pod));
        assert_eq!(
            from("10.0.0.1"),
            Ok(From::Address("10.0.0.1".parse().unwrap()))
        );
        assert!(from("web").is_err());
    }
}
