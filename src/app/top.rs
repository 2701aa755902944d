// SPDX-License-Identifier: Apache-2.0
//! `kube-proxy-rs top`: who has the traffic. Read from IPVS, not from the proxy, which is asked for
//! names only.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use ipvs_netlink::{AddressFamily, Client, ServiceKey, Stats};
use serde_json::Value;

use super::local;
use super::output::print;
use super::page::{Connections, connections};
use crate::config::{TopOptions, TopSort};

/// Pause between two tables. The kernel computes rates every two seconds.
const PERIOD: Duration = Duration::from_secs(2);
/// Clears the screen and goes to its first line.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// One line of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Row {
    /// As `ipvsadm` names it: `TCP 10.96.0.1:80`, `FWM 7 IPv4`.
    server: String,
    /// The real server, if the table is of endpoints.
    endpoint: Option<String>,
    weight: Option<u32>,
    stats: Stats,
    active: u64,
    inactive: u64,
}

impl Row {
    fn key(&self, sort: TopSort) -> u64 {
        match sort {
            TopSort::Connections => self.stats.connections_per_second,
            TopSort::Packets => {
                self.stats.incoming_packets_per_second + self.stats.outgoing_packets_per_second
            }
            TopSort::Bytes => {
                self.stats.incoming_bytes_per_second + self.stats.outgoing_bytes_per_second
            }
            TopSort::Active => self.active,
            TopSort::Total => self.stats.connections,
        }
    }
}

/// Prints the table once, or again and again until a signal ends the program.
pub(super) async fn command(options: &TopOptions) -> anyhow::Result<ExitCode> {
    let mode = local::ask("/proxyMode").await;
    if let Ok(mode) = &mode {
        anyhow::ensure!(
            mode == "ipvs",
            "mode {mode} has no counters for each Service: rules count packets only for the first of a connection, \
             and are rewritten with their Service; `conntrack -L -d ADDRESS` lists its connections"
        );
    }
    let mut client = Client::open().context("cannot read IPVS statistics")?;
    loop {
        let rows = rows(&mut client, options)?;
        let mut table = Table::default();
        for row in rows {
            let name = name_of(&row.server).await;
            table.add(&name, &row);
        }
        if options.once == Some(true) {
            print(table.text())?;
            return Ok(ExitCode::SUCCESS);
        }
        print(format_args!("{CLEAR}{}", table.text()))?;
        tokio::time::sleep(PERIOD).await;
    }
}

fn rows(client: &mut Client, options: &TopOptions) -> anyhow::Result<Vec<Row>> {
    let connections = connections();
    let mut servers: Vec<(ServiceKey, Row)> = Vec::new();
    for status in client.services().context("cannot read virtual servers")? {
        let key = status.service.key;
        let server = shown(&key);
        if !options
            .filter
            .as_ref()
            .is_none_or(|part| server.contains(part))
        {
            continue;
        }
        let mut row = Row {
            stats: status.stats,
            ..Row::default()
        };
        for (_, listed) in of_server(&connections, &server) {
            row.active += u64::from(listed.active);
            row.inactive += u64::from(listed.inactive);
        }
        row.server = server;
        servers.push((key, row));
    }
    servers.sort_by_key(|(_, row)| std::cmp::Reverse(row.key(options.sort)));
    servers.truncate(options.limit);
    if options.endpoints != Some(true) {
        return Ok(servers.into_iter().map(|(_, row)| row).collect());
    }
    let mut rows = Vec::new();
    for (key, server) in servers {
        let found = client
            .destinations(&key)
            .context("cannot read real servers")?;
        rows.extend(found.into_iter().map(|found| Row {
            server: server.server.clone(),
            endpoint: Some(found.destination.key.to_string()),
            weight: Some(found.destination.weight),
            stats: found.stats,
            active: found.active_connections.into(),
            inactive: found.inactive_connections.into(),
        }));
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.key(options.sort)));
    rows.truncate(options.limit);
    Ok(rows)
}

/// The listed real servers of a virtual server.
fn of_server<'a>(
    connections: &'a Connections,
    server: &str,
) -> impl Iterator<Item = (&'a (String, String), &'a super::page::Listed)> {
    let first = (server.to_owned(), String::new());
    let server = server.to_owned();
    let from = connections.range(first..);
    from.take_while(move |((name, _), _)| *name == server)
}

fn shown(key: &ServiceKey) -> String {
    match key {
        ServiceKey::Address {
            protocol,
            address,
            port,
        } => format!("{protocol} {}", SocketAddr::new(*address, *port)),
        ServiceKey::Mark { family, mark } => {
            let family = match family {
                AddressFamily::Inet6 => "IPv6",
                AddressFamily::Inet => "IPv4",
            };
            format!("FWM {mark} {family}")
        }
    }
}

/// The Service port of a virtual server, if the proxy knows it.
async fn name_of(server: &str) -> String {
    let asked = async {
        let (protocol, place) = server.split_once(' ')?;
        let path = format!(
            "/explain?target={place}/{}&from=node",
            protocol.to_lowercase()
        );
        let answer = local::ask(&path).await.ok()?;
        let value: Value = serde_json::from_str(&answer).ok()?;
        Some(value.get(0)?.get("service")?.as_str()?.to_owned())
    };
    asked.await.unwrap_or_else(|| "-".to_owned())
}

/// Columns, as wide as they have to be.
#[derive(Debug, Default)]
struct Table(Vec<[String; 12]>);

const HEAD: [&str; 12] = [
    "SERVICE",
    "SERVER",
    "ENDPOINT",
    "WEIGHT",
    "CONN/S",
    "PKT/S IN",
    "PKT/S OUT",
    "BYTE/S IN",
    "BYTE/S OUT",
    "CONNS",
    "ACTIVE",
    "INACTIVE",
];
/// Columns of text, which are aligned to the left.
const TEXT: usize = 3;

impl Table {
    fn add(&mut self, service: &str, row: &Row) {
        let stats = row.stats;
        self.0.push([
            service.to_owned(),
            row.server.clone(),
            row.endpoint.clone().unwrap_or_default(),
            row.weight
                .map_or_else(String::new, |weight| weight.to_string()),
            stats.connections_per_second.to_string(),
            stats.incoming_packets_per_second.to_string(),
            stats.outgoing_packets_per_second.to_string(),
            stats.incoming_bytes_per_second.to_string(),
            stats.outgoing_bytes_per_second.to_string(),
            stats.connections.to_string(),
            row.active.to_string(),
            row.inactive.to_string(),
        ]);
    }

    fn text(&self) -> String {
        let head = HEAD.map(str::to_owned);
        let lines = || std::iter::once(&head).chain(&self.0);
        // A column that nothing is in is left out.
        let is_empty = |column| {
            let mut cells = self.0.iter().filter_map(|line| line.get(column));
            cells.all(String::is_empty)
        };
        let mut text = String::new();
        for line in lines() {
            let mut printed = Vec::new();
            for (column, cell) in line
                .iter()
                .enumerate()
                .filter(|(column, _)| !is_empty(*column))
            {
                let cells = lines().filter_map(|line| line.get(column));
                let width = cells.map(String::len).max().unwrap_or_default();
                printed.push(if column < TEXT {
                    format!("{cell:width$}")
                } else {
                    format!("{cell:>width$}")
                });
            }
            text.push_str(printed.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_empty_ones_left_out() {
        let mut table = Table::default();
        for (name, connections) in [("shop/web:http TCP", 12), ("a/b", 3)] {
            let mut row = Row {
                server: "TCP 10.96.0.1:80".to_owned(),
                ..Row::default()
            };
            row.stats.connections = connections;
            table.add(name, &row);
        }
        assert_eq!(
            table.text(),
            "\
SERVICE            SERVER            CONN/S  PKT/S IN  PKT/S OUT  BYTE/S IN  BYTE/S OUT  CONNS  ACTIVE  INACTIVE
shop/web:http TCP  TCP 10.96.0.1:80       0         0          0          0           0     12       0         0
a/b                TCP 10.96.0.1:80       0         0          0          0           0      3       0         0
"
        );
    }
}
