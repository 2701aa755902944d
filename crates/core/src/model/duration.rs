// SPDX-License-Identifier: Apache-2.0
//! PURE: durations as Go prints and parses them: `30s`, `2h22m`, `1.5h`, `-1s`, `0`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const NANOSECOND: u64 = 1;
const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// A signed duration in whole nanoseconds: Go's `time.Duration`, so that negative ones reach
/// validation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(i64);

/// Text that is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid duration {0:?}: want for example 30s, 1m30s or 500ms")]
pub struct InvalidDuration(pub String);

impl GoDuration {
    /// Zero, which means the default in most fields.
    pub const ZERO: Self = Self(0);

    /// From whole seconds.
    pub const fn from_secs(seconds: u32) -> Self {
        Self(seconds as i64 * SECOND.cast_signed())
    }

    /// From nanoseconds.
    pub const fn from_nanos(nanoseconds: i64) -> Self {
        Self(nanoseconds)
    }

    /// Whether it is zero.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Whether it is below zero.
    pub const fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// As an unsigned duration, a negative one as zero.
    pub const fn to_duration(self) -> Duration {
        Duration::from_nanos(if self.0 < 0 {
            0
        } else {
            self.0.cast_unsigned()
        })
    }

    /// As an unsigned duration if it is above zero.
    pub fn positive(self) -> Option<Duration> {
        (self.0 > 0).then(|| self.to_duration())
    }
}

impl FromStr for GoDuration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text)
            .map(Self)
            .ok_or_else(|| InvalidDuration(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = after.strip_prefix('.').map_or(("", after), digits);
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit_length = after
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(unit_length)?;
        let unit = match unit {
            "ns" => NANOSECOND,
            // Micro sign and Greek letter mu.
            "us" | "\u{b5}s" | "\u{3bc}s" => MICROSECOND,
            "ms" => MILLISECOND,
            "s" => SECOND,
            "m" => MINUTE,
            "h" => HOUR,
            _ => return None,
        };
        let whole: u64 = if whole.is_empty() {
            0
        } else {
            whole.parse().ok()?
        };
        total = total
            .checked_add(whole.checked_mul(unit)?)?
            .checked_add(part(fraction, unit))?;
        rest = after;
    }
    let total = i64::try_from(total).ok()?;
    Some(if negative { -total } else { total })
}

fn digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

/// `unit` times `0.fraction`, rounded down.
fn part(fraction: &str, unit: u64) -> u64 {
    let mut part = 0;
    let mut unit = u128::from(unit) * 1_000_000_000_000_000_000;
    for digit in fraction.bytes().take(18) {
        unit /= 10;
        part += u128::from(digit.saturating_sub(b'0')) * unit;
    }
    u64::try_from(part / 1_000_000_000_000_000_000).unwrap_or(0)
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        match nanos {
            0 => f.write_str("0s"),
            1..MICROSECOND => write!(f, "{nanos}ns"),
            MICROSECOND..MILLISECOND => write_decimal(f, nanos, MICROSECOND, "\u{b5}s"),
            MILLISECOND..SECOND => write_decimal(f, nanos, MILLISECOND, "ms"),
            _ => {
                let (hours, minutes) = (nanos / HOUR, nanos % HOUR / MINUTE);
                if hours > 0 {
                    write!(f, "{hours}h")?;
                }
                if nanos >= MINUTE {
                    write!(f, "{minutes}m")?;
                }
                write_decimal(f, nanos % MINUTE, SECOND, "s")
            }
        }
    }
}

fn write_decimal(f: &mut fmt::Formatter<'_>, nanos: u64, unit: u64, name: &str) -> fmt::Result {
    write!(f, "{}", nanos / unit)?;
    let fraction = nanos % unit;
    if fraction > 0 {
        let width = unit.ilog10() as usize;
        let text = format!("{fraction:0width$}");
        write!(f, ".{}", text.trim_end_matches('0'))?;
    }
    f.write_str(name)
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> i64 {
        text.parse::<GoDuration>()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
            .0
    }

    #[test]
    fn go_durations_are_read() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("-0", 0),
            ("30s", 30_000_000_000),
            ("+30s", 30_000_000_000),
            ("2h22m", 8_520_000_000_000),
            ("1h15m30.918s", 4_530_918_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("5.s", 5_000_000_000),
            ("100ms", 100_000_000),
            ("7us", 7_000),
            ("7\u{b5}s", 7_000),
            ("7\u{3bc}s", 7_000),
            ("3ns", 3),
            ("-1.5s", -1_500_000_000),
            ("0.9999999999s", 999_999_999),
        ] {
            assert_eq!(parsed(text), nanos, "{text}");
        }
    }

    #[test]
    fn what_go_rejects_is_rejected() {
        for text in [
            "",
            "-",
            "30",
            "s",
            ".s",
            "1x",
            "1d",
            "1 s",
            "30S",
            "--1s",
            "9999999999h",
            "1s1",
            "\u{b5}",
        ] {
            assert_eq!(
                text.parse::<GoDuration>(),
                Err(InvalidDuration(text.to_owned())),
                "{text}"
            );
        }
    }

    #[test]
    fn durations_print_as_go_prints_them() {
        for (text, printed) in [
            ("0", "0s"),
            ("30s", "30s"),
            ("60s", "1m0s"),
            ("2h22m", "2h22m0s"),
            ("24h", "24h0m0s"),
            ("1.5s", "1.5s"),
            ("90.25s", "1m30.25s"),
            ("100ms", "100ms"),
            ("1500us", "1.5ms"),
            ("1500ns", "1.5\u{b5}s"),
            ("3ns", "3ns"),
            ("-1s", "-1s"),
        ] {
            assert_eq!(GoDuration(parsed(text)).to_string(), printed, "{text}");
        }
    }

    #[test]
    fn negative_durations_become_zero_or_none() {
        assert_eq!(GoDuration(-5).to_duration(), Duration::ZERO);
        assert_eq!(GoDuration(-5).positive(), None);
        assert_eq!(GoDuration(0).positive(), None);
        assert_eq!(
            GoDuration::from_secs(5).positive(),
            Some(Duration::from_secs(5))
        );
    }

    proptest! {
        #[test]
        fn printed_durations_are_read_back(nanos in -i64::MAX..=i64::MAX) {
            let duration = GoDuration(nanos);
            prop_assert_eq!(duration.to_string().parse::<GoDuration>(), Ok(duration));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[-+0-9.a-zµ ]{0,12}") {
            // Only checks that it does not panic.
            drop(text.parse::<GoDuration>());
        }
    }
}
