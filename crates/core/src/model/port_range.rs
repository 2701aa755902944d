// SPDX-License-Identifier: Apache-2.0
//! A range of ports, written as the API server's `--service-node-port-range` is.

use std::fmt;
use std::str::FromStr;

/// Ports from the first to the last one, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// Text that is not a range of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a range of ports, such as 30000-32767")]
pub struct InvalidPortRange(pub String);

impl PortRange {
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl FromStr for PortRange {
    type Err = InvalidPortRange;

    /// `30000-32767`, `30000+2767` (that many more) or `30000`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| text.trim().parse::<u16>().ok();
        let range = if let Some((first, last)) = text.split_once('-') {
            number(first).zip(number(last))
        } else if let Some((first, more)) = text.split_once('+') {
            let first = number(first);
            first.zip(
                first
                    .zip(number(more))
                    .and_then(|(first, more)| first.checked_add(more)),
            )
        } else {
            number(text).map(|port| (port, port))
        };
        range
            .filter(|(first, last)| 0 < *first && first <= last)
            .map(|(first, last)| Self { first, last })
            .ok_or_else(|| InvalidPortRange(text.to_owned()))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_written_as_for_the_api_server() {
        for (text, shown) in [
            ("30000-32767", "30000-32767"),
            ("20000+2767", "20000-22767"),
            ("1-65535", "1-65535"),
            ("8080", "8080-8080"),
            (" 80 - 90 ", "80-90"),
        ] {
            assert_eq!(text.parse::<PortRange>().unwrap().to_string(), shown);
        }
        for text in [
            "", "-", "a", "0-5", "9-8", "1-65536", "65535+1", "1-2-3", "-1",
        ] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
        let range: PortRange = "20000-22767".parse().unwrap();
        assert!(
            [20_000, 22_767]
                .into_iter()
                .all(|port| range.contains(port))
        );
        assert!(
            ![19_999, 22_768, 30_000]
                .into_iter()
                .any(|port| range.contains(port))
        );
    }
}
