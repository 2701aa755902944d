// SPDX-License-Identifier: Apache-2.0
//! Plots as one SVG file of small panels: a figure over the number of Services, both axes
//! logarithmic.

use std::fmt::Write as _;

use super::figures::{BURST_CPU, COLD, ENDPOINT, Figure, MEMORY, NEW_SERVICE, PLAIN_PACKET};
use super::results::{Cluster, IPTABLES, IPVS, Mode, OURS, Results, THEIRS};
use crate::sample::{Sample, short};

const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 270.0;
/// Around the plot area of a panel.
const LEFT: f64 = 62.0;
const RIGHT: f64 = 22.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 40.0;
/// Above all panels.
const HEAD: f64 = 76.0;
const COLUMNS: usize = 2;

/// Clusters of ten endpoints a Service.
const SERVICES: [u64; 4] = [100, 1_000, 5_000, 10_000];

/// The colors are safe for red-green color blindness.
const LINES: [(Mode, &str, &str, &str, &str); 4] = [
    (IPVS, OURS, "IPVS, ours", "#0b62a8", ""),
    (IPVS, THEIRS, "IPVS, kube-proxy", "#d1690e", ""),
    (IPTABLES, OURS, "iptables, ours", "#0b62a8", "6 4"),
    (IPTABLES, THEIRS, "iptables, kube-proxy", "#d1690e", "6 4"),
];

const PANELS: [(&str, Figure); 6] = [
    ("Cold start, seconds", COLD),
    ("One endpoint, API write to kernel, ms", ENDPOINT),
    ("New Service to first connection, ms", NEW_SERVICE),
    ("CPU for 1,000 changes, seconds", BURST_CPU),
    ("Resident memory, MB", MEMORY),
    ("First packet of plain traffic, added us", PLAIN_PACKET),
];

/// Smaller values are drawn here: zero has no logarithm, and less is noise.
const LEAST: f64 = 0.01;

pub(super) fn draw(results: &Results) -> Result<String, std::fmt::Error> {
    let mut svg = String::new();
    write(&mut svg, results)?;
    Ok(svg)
}

fn write(svg: &mut String, results: &Results) -> std::fmt::Result {
    let rows = PANELS.len().div_ceil(COLUMNS);
    let (width, height) = (WIDTH * float(COLUMNS), HEAD + HEIGHT * float(rows));
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>"
    )?;
    for (index, (_, _, name, color, dash)) in LINES.into_iter().enumerate() {
        let x = 20.0 + float(index) * 190.0;
        writeln!(
            svg,
            "<line x1=\"{x}\" y1=\"22\" x2=\"{}\" y2=\"22\" stroke=\"{color}\" stroke-width=\"2.5\" stroke-dasharray=\"{dash}\"/>\n\
             <text x=\"{}\" y=\"26\">{name}</text>",
            x + 34.0,
            x + 42.0
        )?;
    }
    writeln!(
        svg,
        "<text x=\"20\" y=\"48\" fill=\"#555\">x axis: Services with 10 endpoints each. Medians, with bars from minimum to maximum.</text>\n\
         <text x=\"20\" y=\"64\" fill=\"#555\">IPVS runs in a guest kernel, iptables on the host: compare lines of the same mode only.</text>"
    )?;
    for (index, (title, figure)) in PANELS.into_iter().enumerate() {
        let x = float(index % COLUMNS) * WIDTH;
        let y = HEAD + float(index / COLUMNS) * HEIGHT;
        writeln!(svg, "<g transform=\"translate({x} {y})\">")?;
        panel(svg, results, title, figure)?;
        writeln!(svg, "</g>")?;
    }
    writeln!(svg, "</svg>")
}

fn panel(svg: &mut String, results: &Results, title: &str, figure: Figure) -> std::fmt::Result {
    writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"24\" font-size=\"14\" font-weight=\"bold\">{title}</text>"
    )?;
    let lines: Vec<Vec<(f64, Sample)>> = LINES
        .iter()
        .map(|(mode, who, ..)| {
            let at = |services: u64| {
                let cluster = Cluster::new(services, 10);
                let sample = results.sample(*mode, who, cluster, |of| figure.numbers(of));
                (decades(services), sample)
            };
            SERVICES
                .map(at)
                .into_iter()
                .filter(|(_, sample)| !sample.is_empty())
                .collect()
        })
        .collect();
    let samples = || lines.iter().flatten().map(|(_, sample)| sample);
    if samples().next().is_none() {
        return writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{}\" fill=\"#777\">not measured</text>",
            HEIGHT / 2.0
        );
    }
    // Outliers must not flatten the rest: their bars are clipped.
    let low = samples()
        .map(|of| log(of.median()))
        .fold(f64::INFINITY, f64::min);
    let high = samples()
        .map(|of| log(of.median()))
        .fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = (low.floor(), high.ceil().max(low.floor() + 1.0));
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    // From 100 to 10,000 Services, with a margin.
    let x = |decades: f64| LEFT + 8.0 + (decades - 2.0) / 2.0 * (right - LEFT - 16.0);
    let y = |log: f64| bottom - (log - low) / (high - low) * (bottom - TOP);
    let mut decade = low;
    while decade <= high {
        let at = y(decade);
        writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\n\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            at + 4.0,
            10_f64.powf(decade)
        )?;
        decade += 1.0;
    }
    for services in SERVICES {
        writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{services}</text>",
            x(decades(services)),
            bottom + 18.0
        )?;
    }
    for ((_, _, _, color, dash), points) in LINES.into_iter().zip(&lines) {
        let path: Vec<String> = points
            .iter()
            .map(|(at, sample)| format!("{:.1},{:.1}", x(*at), y(log(sample.median()))))
            .collect();
        writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2.2\" stroke-dasharray=\"{dash}\"/>",
            path.join(" ")
        )?;
        for (at, sample) in points {
            let (x, median) = (x(*at), y(log(sample.median())));
            writeln!(
                svg,
                "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke=\"{color}\"/>\n\
                 <circle cx=\"{x:.1}\" cy=\"{median:.1}\" r=\"3.2\" fill=\"{color}\"><title>{}</title></circle>",
                y(log(sample.min()).max(low)),
                y(log(sample.max()).min(high)),
                short(sample.median())
            )?;
        }
    }
    Ok(())
}

fn log(number: f64) -> f64 {
    number.max(LEAST).log10()
}

fn decades(services: u64) -> f64 {
    u32::try_from(services).map_or(f64::NAN, f64::from).log10()
}

fn float(index: usize) -> f64 {
    u32::try_from(index).map_or(f64::NAN, f64::from)
}
