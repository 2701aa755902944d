// SPDX-License-Identifier: Apache-2.0
//! `kube-proxy-rs top`: who has the traffic. Read from IPVS, not from the proxy, which is asked for
//! names only, and only when there is a virtual server that has none yet.

mod keys;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use ipvs_netlink::Stats;
use tokio::time::Instant;

use super::local;
use super::output::{print, print_note};
use super::screen::{Colour, Paint, Table, cut, size};
use crate::config::{TopOptions, TopSort};
use crate::dataplane::modes::ipvs::statistics::{self, Counters, Servers};
use keys::{Key, Terminal};
use kpr_core::plan::ipvs::object::VirtualServerKey;

/// Pause between two tables. The kernel computes rates every two seconds.
const PERIOD: Duration = Duration::from_secs(2);
/// Least time between two questions for names.
const NAMES_PERIOD: Duration = Duration::from_secs(10);
/// Lines above and below the table.
const FRAME: usize = 4;

/// Said where the kernel does not count.
const FROZEN: &str = "net.ipv4.vs.run_estimation is 0: only ACTIVE and INACTIVE change";

/// Goes to the first line.
const HOME: &str = "\x1b[H";
/// Erases the rest of a line, and all lines below.
const ERASE_LINE: &str = "\x1b[K";
const ERASE_BELOW: &str = "\x1b[J";

/// One line of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Row {
    /// The Service port, or a dash.
    service: String,
    /// As `ipvsadm` names it: `TCP 10.96.0.1:80`, `FWM 7 IPv4`.
    server: String,
    /// The real server, if the table is of endpoints.
    endpoint: String,
    weight: Option<u32>,
    stats: Stats,
    active: u64,
    inactive: u64,
}

impl Row {
    fn key(&self, sort: TopSort) -> u64 {
        let stats = &self.stats;
        match sort {
            TopSort::Connections => stats.connections_per_second,
            TopSort::Packets => {
                stats.incoming_packets_per_second + stats.outgoing_packets_per_second
            }
            TopSort::Bytes => stats.incoming_bytes_per_second + stats.outgoing_bytes_per_second,
            TopSort::Active => self.active,
            TopSort::Total => stats.connections,
        }
    }

    fn cells(&self) -> [String; 12] {
        let stats = &self.stats;
        let weight = match self.weight {
            None => String::new(),
            Some(0) => "0 drains".to_owned(),
            Some(weight) => weight.to_string(),
        };
        let numbers = [
            stats.connections_per_second,
            stats.incoming_packets_per_second,
            stats.outgoing_packets_per_second,
            stats.incoming_bytes_per_second,
            stats.outgoing_bytes_per_second,
            stats.connections,
            self.active,
            self.inactive,
        ];
        let texts = [&self.service, &self.server, &self.endpoint, &weight];
        let mut cells = texts
            .into_iter()
            .cloned()
            .chain(numbers.map(|number| number.to_string()));
        std::array::from_fn(|_| cells.next().unwrap_or_default())
    }
}

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
/// Columns that narrow terminals go without, the first ones first.
const LEAST_WANTED: [usize; 7] = [6, 5, 11, 9, 3, 8, 1];

/// Prints the table once, or again and again until a key or a signal ends the program.
pub(super) async fn command(options: &TopOptions) -> anyhow::Result<ExitCode> {
    let mode = local::ask("/proxyMode").await;
    if let Ok(mode) = &mode {
        anyhow::ensure!(
            mode == "ipvs",
            "mode {mode} has no counters for each Service: rules count packets only for the first of a connection, \
             and are rewritten with their Service; `conntrack -L -d ADDRESS` lists its connections"
        );
    }
    let counters = Counters::open().context("cannot read IPVS statistics")?;
    let mut view = View {
        counters,
        names: Names::default(),
        options: options.clone(),
        entered: None,
        is_paused: false,
    };
    if statistics::are_frozen() {
        print_note(FROZEN);
    }
    if options.once == Some(true) {
        let rows = view.rows().await?;
        print(lines_of(&rows, None).join("\n") + "\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    super::go_behind();
    let mut terminal = Terminal::enter();
    let mut rows = view.rows().await?;
    let mut next = Instant::now() + PERIOD;
    loop {
        match &terminal {
            Some(_) => print(view.screen(&rows))?,
            None => print(lines_of(&rows, None).join("\n") + "\n\n")?,
        }
        let key = async {
            match &mut terminal {
                Some(terminal) => terminal.key().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep_until(next) => {
                next = Instant::now() + PERIOD;
                if !view.is_paused {
                    rows = view.rows().await?;
                }
            }
            key = key => match view.press(key) {
                Pressed::Quit => return Ok(ExitCode::SUCCESS),
                Pressed::Other => {}
                Pressed::Choice => rows = view.rows().await?,
            },
        }
    }
}

/// What a key changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pressed {
    Quit,
    /// Which lines there are.
    Choice,
    Other,
}

/// What is looked at, and how.
#[derive(Debug)]
struct View {
    counters: Counters,
    names: Names,
    options: TopOptions,
    /// The filter that is being written.
    entered: Option<String>,
    is_paused: bool,
}

impl View {
    async fn rows(&mut self) -> anyhow::Result<Vec<Row>> {
        let stats = self.counters.of_servers();
        let stats = stats.context("cannot read virtual servers")?;
        let listed = statistics::servers().context("cannot list connections")?;
        self.names.know(stats.keys()).await;
        let filter = self.options.filter.as_deref().unwrap_or_default();
        let sort = self.options.sort;
        let mut servers: Vec<(VirtualServerKey, Row)> = stats
            .into_iter()
            .map(|(key, stats)| (key, self.names.row(&key, stats, &listed)))
            .filter(|(_, row)| row.service.contains(filter) || row.server.contains(filter))
            .collect();
        servers.sort_by_key(|(_, row)| std::cmp::Reverse(row.key(sort)));
        servers.truncate(self.limit());
        if self.options.endpoints != Some(true) {
            return Ok(servers.into_iter().map(|(_, row)| row).collect());
        }
        let mut rows = Vec::new();
        for (key, server) in servers {
            let found = self.counters.of_real_servers(&key);
            let of_server = listed.get(&key);
            for (endpoint, stats) in found.context("cannot read real servers")? {
                let listed = of_server.and_then(|of| of.get(&endpoint)).copied();
                rows.push(Row {
                    service: server.service.clone(),
                    server: server.server.clone(),
                    endpoint: endpoint.to_string(),
                    weight: listed.map(|listed| listed.weight),
                    stats,
                    active: listed.unwrap_or_default().active,
                    inactive: listed.unwrap_or_default().inactive,
                });
            }
        }
        rows.sort_by_key(|row| std::cmp::Reverse(row.key(sort)));
        rows.truncate(self.limit());
        Ok(rows)
    }

    /// As many lines as a terminal has, unless it is said how many.
    fn limit(&self) -> usize {
        let height = size().map(|(_, height)| height.saturating_sub(FRAME).max(1));
        let of_screen = height.filter(|_| self.options.once != Some(true));
        match (self.options.limit, of_screen) {
            (Some(limit), Some(height)) => limit.min(height),
            (Some(limit), None) => limit,
            (None, Some(height)) => height,
            (None, None) => DEFAULT_LIMIT,
        }
    }

    fn screen(&self, rows: &[Row]) -> String {
        let paint = Paint::for_stdout();
        let width = size().map(|(width, _)| width);
        let mut lines = vec![paint.with(Colour::Bold, cut(&self.heading(), width))];
        for (index, line) in lines_of(rows, width).into_iter().enumerate() {
            lines.push(match index {
                0 => paint.with(Colour::Dim, line),
                _ => line,
            });
        }
        lines.push(String::new());
        lines.push(paint.with(Colour::Dim, cut(&self.help(), width)));
        let end = format!("{ERASE_LINE}\r\n");
        format!("{HOME}{}{ERASE_LINE}{ERASE_BELOW}", lines.join(&end))
    }

    fn heading(&self) -> String {
        let what = match self.options.endpoints {
            Some(true) => "endpoints",
            _ => "virtual servers",
        };
        let filter = match self.options.filter.as_deref() {
            None | Some("") => String::new(),
            Some(filter) => format!(", with {filter:?}"),
        };
        let paused = if self.is_paused { ", paused" } else { "" };
        let sort = sort_name(self.options.sort);
        let heading = format!("kube-proxy-rs top: {what} by {sort}{filter}{paused}");
        if statistics::are_frozen() {
            format!("{heading}; {FROZEN}")
        } else {
            heading
        }
    }

    fn help(&self) -> String {
        match &self.entered {
            Some(entered) => format!("filter: {entered}_  (Enter: apply, Esc: cancel)"),
            None => "sort: c connections p packets b bytes a active t total | e endpoints | \
                     / filter | space pause | q quit"
                .to_owned(),
        }
    }

    fn press(&mut self, key: Key) -> Pressed {
        if let Some(mut entered) = self.entered.take() {
            match key {
                Key::Enter => {
                    self.options.filter = Some(entered);
                    return Pressed::Choice;
                }
                Key::Escape => return Pressed::Other,
                Key::Backspace => _ = entered.pop(),
                Key::Sign(sign) => entered.push(sign),
                Key::End => return Pressed::Quit,
            }
            self.entered = Some(entered);
            return Pressed::Other;
        }
        let sort = match key {
            Key::Sign('q') | Key::End => return Pressed::Quit,
            Key::Sign('c') => TopSort::Connections,
            Key::Sign('p') => TopSort::Packets,
            Key::Sign('b') => TopSort::Bytes,
            Key::Sign('a') => TopSort::Active,
            Key::Sign('t') => TopSort::Total,
            Key::Sign('e') => {
                self.options.endpoints = Some(self.options.endpoints != Some(true));
                return Pressed::Choice;
            }
            Key::Sign('/') => {
                self.entered = Some(self.options.filter.clone().unwrap_or_default());
                return Pressed::Other;
            }
            Key::Sign(' ') => {
                self.is_paused = !self.is_paused;
                return Pressed::Other;
            }
            _ => return Pressed::Other,
        };
        self.options.sort = sort;
        Pressed::Choice
    }
}

/// Lines without a terminal, unless it is said how many.
const DEFAULT_LIMIT: usize = 20;

const fn sort_name(sort: TopSort) -> &'static str {
    match sort {
        TopSort::Connections => "new connections",
        TopSort::Packets => "packets",
        TopSort::Bytes => "bytes",
        TopSort::Active => "active connections",
        TopSort::Total => "all connections",
    }
}

fn lines_of(rows: &[Row], width: Option<usize>) -> Vec<String> {
    let mut table = Table::new(HEAD, TEXT);
    for row in rows {
        table.add(row.cells());
    }
    table.lines(width, &LEAST_WANTED)
}

/// Which Service ports have the virtual servers.
#[derive(Debug, Default)]
struct Names {
    known: BTreeMap<String, String>,
    /// Those that the proxy does not know: of other programs.
    foreign: BTreeSet<String>,
    asked: Option<Instant>,
}

impl Names {
    /// Asks the proxy if there is a virtual server that was not there before.
    async fn know(&mut self, servers: impl Iterator<Item = &VirtualServerKey>) {
        let servers: BTreeSet<String> = servers.map(ToString::to_string).collect();
        // One that comes again may be another Service's.
        self.known.retain(|server, _| servers.contains(server));
        self.foreign.retain(|server| servers.contains(server));
        let mut all = servers.iter();
        let is_news =
            |server: &String| !self.known.contains_key(server) && !self.foreign.contains(server);
        let is_soon = self.asked.is_some_and(|at| at.elapsed() < NAMES_PERIOD);
        if is_soon || !all.any(is_news) {
            return;
        }
        self.asked = Some(Instant::now());
        // Without a proxy the kernel's numbers stand alone.
        let Ok(answer) = local::ask("/servers").await else {
            return;
        };
        self.known = serde_json::from_str(&answer).unwrap_or_default();
        let others = servers.into_iter();
        let others = others.filter(|server| !self.known.contains_key(server));
        self.foreign = others.collect();
    }

    fn row(&self, key: &VirtualServerKey, stats: Stats, listed: &Servers) -> Row {
        let server = key.to_string();
        let name = self.known.get(&server);
        let mut row = Row {
            service: name.map_or_else(|| "-".to_owned(), Clone::clone),
            server,
            stats,
            ..Row::default()
        };
        for listed in listed.get(key).into_iter().flat_map(BTreeMap::values) {
            row.active += listed.active;
            row.inactive += listed.inactive;
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_row_is_in_its_cells() {
        let mut row = Row {
            service: "shop/web:http".to_owned(),
            server: "TCP 10.96.0.1:80".to_owned(),
            endpoint: "10.1.0.1:8080".to_owned(),
            weight: Some(0),
            active: 7,
            inactive: 8,
            ..Row::default()
        };
        row.stats.connections_per_second = 1;
        row.stats.incoming_packets_per_second = 2;
        row.stats.outgoing_packets_per_second = 3;
        row.stats.incoming_bytes_per_second = 4;
        row.stats.outgoing_bytes_per_second = 5;
        row.stats.connections = 6;
        let lines = lines_of(&[row.clone()], None);
        let cells: Vec<&str> = lines[1].split("  ").map(str::trim).collect();
        let cells: Vec<&str> = cells.into_iter().filter(|cell| !cell.is_empty()).collect();
        assert_eq!(
            cells,
            [
                "shop/web:http",
                "TCP 10.96.0.1:80",
                "10.1.0.1:8080",
                "0 drains",
                "1",
                "2",
                "3",
                "4",
                "5",
                "6",
                "7",
                "8"
            ]
        );
        for (sort, key) in [
            (TopSort::Connections, 1),
            (TopSort::Packets, 5),
            (TopSort::Bytes, 9),
            (TopSort::Active, 7),
            (TopSort::Total, 6),
        ] {
            assert_eq!(row.key(sort), key, "{sort:?}");
        }
    }

    #[test]
    fn a_narrow_terminal_shows_who_and_how_many() {
        let row = Row {
            service: "shop/web:http".to_owned(),
            server: "TCP 10.96.0.1:80".to_owned(),
            ..Row::default()
        };
        let lines = lines_of(&[row], Some(40));
        assert_eq!(lines[0], "SERVICE        CONN/S  BYTE/S IN  ACTIVE");
        assert_eq!(lines[1], "shop/web:http       0          0       0");
    }
}
