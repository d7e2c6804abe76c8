//! Collects samples and prints medians.

use std::collections::BTreeMap;
use std::fmt::Write;

/// Samples by row (in order of their first appearance), endpoint and round.
pub struct Table {
    title: String,
    names: Vec<String>,
    rows: Vec<String>,
    samples: BTreeMap<(String, String), BTreeMap<usize, Vec<f64>>>,
}

impl Table {
    pub fn new(title: &str, names: &[String]) -> Self {
        Self {
            title: title.into(),
            names: names.to_vec(),
            rows: vec![],
            samples: BTreeMap::new(),
        }
    }

    pub fn add(&mut self, name: &str, round: usize, values: Vec<(String, f64)>) {
        for (row, value) in values {
            if !self.rows.contains(&row) {
                self.rows.push(row.clone());
            }
            self.samples
                .entry((row, name.to_owned()))
                .or_default()
                .entry(round)
                .or_default()
                .push(value);
        }
    }

    /// Median of the rounds' medians, with the lowest and highest round.
    fn cell(&self, row: &str, name: &str) -> Option<(f64, f64, f64)> {
        let rounds = self.samples.get(&(row.to_owned(), name.to_owned()))?;
        let medians: Vec<f64> = rounds.values().map(|samples| median(samples)).collect();
        let low = medians.iter().copied().fold(f64::INFINITY, f64::min);
        let high = medians.iter().copied().fold(0.0, f64::max);
        Some((median(&medians), low, high))
    }

    pub fn markdown(&self) -> String {
        let mut out = format!("### {}\n\n| | {} |", self.title, self.names.join(" | "));
        let compared = self.names.len() > 1;
        if compared {
            let _ = write!(out, " {} / best other |", self.names[0]);
        }
        let _ = writeln!(
            out,
            "\n|---|{}",
            "---|".repeat(self.names.len() + usize::from(compared))
        );
        for row in &self.rows {
            let _ = write!(out, "| {row} |");
            for name in &self.names {
                let _ = match self.cell(row, name) {
                    Some((middle, low, high)) if low < high => write!(out, " {middle:.1} [{low:.1}..{high:.1}] |"),
                    Some((middle, _, _)) => write!(out, " {middle:.1} |"),
                    None => write!(out, " |"),
                };
            }
            if compared {
                let best = self.names[1..]
                    .iter()
                    .filter_map(|name| self.cell(row, name))
                    .map(|cell| cell.0);
                let best = best.fold(f64::INFINITY, f64::min);
                let _ = match self.cell(row, &self.names[0]) {
                    Some((own, _, _)) if best.is_finite() && best > 0.0 => write!(out, " {:.2} |", own / best),
                    _ => write!(out, " |"),
                };
            }
            out.push('\n');
        }
        out
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_to_the_best_other() {
        let names = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let mut table = Table::new("t", &names);
        for (name, value) in [("a", 1.0), ("b", 4.0), ("c", 2.0)] {
            table.add(name, 0, vec![("step".into(), value)]);
        }
        assert!(
            table.markdown().contains("| step | 1.0 | 4.0 | 2.0 | 0.50 |"),
            "{}",
            table.markdown()
        );
    }
}
