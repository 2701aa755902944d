// SPDX-License-Identifier: Apache-2.0
//! Measured numbers with their median and spread.

use std::fmt;

/// Sorted measurements of one quantity.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    pub(crate) fn new(mut numbers: Vec<f64>) -> Self {
        numbers.sort_by(f64::total_cmp);
        Self(numbers)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn min(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn max(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        match (self.0.get(middle.wrapping_sub(1)), self.0.get(middle)) {
            (Some(low), Some(high)) if self.0.len().is_multiple_of(2) => f64::midpoint(*low, *high),
            (_, Some(middle)) => *middle,
            _ => f64::NAN,
        }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&short(self.median()))?;
        if self.count() > 1 {
            let (min, max) = (short(self.min()), short(self.max()));
            write!(f, " ({min}..{max}, n={})", self.count())?;
        }
        Ok(())
    }
}

/// Rounded to about three significant digits; digits before the point are all kept.
pub(crate) fn short(number: f64) -> String {
    if number.is_nan() {
        return "-".to_owned();
    }
    let digits = match number.abs() {
        size if size.fract() < 1e-9 => 0,
        size if size < 0.1 => 3,
        size if size < 10.0 => 2,
        size if size < 100.0 => 1,
        _ => 0,
    };
    format!("{number:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_shows_its_median_and_spread() {
        let sample = Sample::new(vec![3.0, 1.0, 10.0, 2.0]);
        assert_eq!(sample.to_string(), "2.50 (1..10, n=4)");
        assert_eq!(Sample::new(vec![0.012]).to_string(), "0.012");
        assert_eq!(Sample::default().to_string(), "-");
    }
}
