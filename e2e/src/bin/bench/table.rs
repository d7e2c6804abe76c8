//! Collects samples and prints medians.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

/// Samples by row (in order of their first appearance), endpoint and round.
pub struct Table {
    title: String,
    /// Endpoints, and which of them are ours: those are compared with the best of the others.
    names: Vec<(String, bool)>,
    rows: Vec<String>,
    samples: BTreeMap<(String, String), BTreeMap<usize, Vec<f64>>>,
}

/// Median of the rounds' medians, and the lowest and highest of them.
#[derive(Clone, Copy)]
struct Cell {
    middle: f64,
    low: f64,
    high: f64,
}

impl Table {
    pub fn new(title: &str, names: &[(String, bool)]) -> Self {
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

    fn cell(&self, row: &str, name: &str) -> Option<Cell> {
        let rounds = self.samples.get(&(row.to_owned(), name.to_owned()))?;
        let medians: Vec<f64> = rounds.values().map(|samples| median(samples)).collect();
        Some(Cell {
            middle: median(&medians),
            low: medians.iter().copied().fold(f64::INFINITY, f64::min),
            high: medians.iter().copied().fold(0.0, f64::max),
        })
    }

    /// The best of those that are not ours.
    fn best_peer(&self, row: &str) -> Option<f64> {
        let peers = self.names.iter().filter(|(_, ours)| !ours);
        let best = peers
            .filter_map(|(name, _)| self.cell(row, name))
            .fold(f64::INFINITY, |best, cell| best.min(cell.middle));
        (best.is_finite() && best > 0.0).then_some(best)
    }

    pub fn markdown(&self) -> String {
        let names: Vec<&str> = self.names.iter().map(|(name, _)| name.as_str()).collect();
        let mut out = format!("### {}\n\n| | {} |\n|---|", self.title, names.join(" | "));
        let _ = writeln!(out, "{}", "---|".repeat(names.len()));
        for row in &self.rows {
            let _ = write!(out, "| {row} |");
            let best = self.best_peer(row);
            for (name, ours) in &self.names {
                let Some(cell) = self.cell(row, name) else {
                    out.push_str(" |");
                    continue;
                };
                let _ = write!(out, " {:.1}", cell.middle);
                if cell.low < cell.high {
                    let _ = write!(out, " [{:.1}..{:.1}]", cell.low, cell.high);
                }
                if let (true, Some(best)) = (*ours, best) {
                    let _ = write!(out, " ×{:.2}", cell.middle / best);
                }
                out.push_str(" |");
            }
            out.push('\n');
        }
        out
    }

    pub fn json(&self) -> Value {
        let row = |row: &String| {
            let cells: serde_json::Map<String, Value> = self
                .names
                .iter()
                .filter_map(|(name, ours)| {
                    let cell = self.cell(row, name)?;
                    let ratio = self.best_peer(row).filter(|_| *ours).map(|best| cell.middle / best);
                    let rounds: Vec<&Vec<f64>> = self.samples[&(row.clone(), name.clone())].values().collect();
                    let value = json!({
                        "median": cell.middle, "lowest": cell.low, "highest": cell.high,
                        "to_best_peer": ratio, "rounds": rounds,
                    });
                    Some((name.clone(), value))
                })
                .collect();
            json!({ "name": row.replace("**", ""), "cells": cells })
        };
        json!({ "title": self.title, "rows": self.rows.iter().map(row).collect::<Vec<_>>() })
    }
}

pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_are_compared_with_the_best_peer() {
        let names = [("a", true), ("b", false), ("c", false), ("d", true)].map(|(name, ours)| (name.to_owned(), ours));
        let mut table = Table::new("t", &names);
        for (name, value) in [("a", 1.0), ("b", 4.0), ("c", 2.0), ("d", 3.0)] {
            table.add(name, 0, vec![("step".into(), value)]);
        }
        assert!(
            table
                .markdown()
                .contains("| step | 1.0 ×0.50 | 4.0 | 2.0 | 3.0 ×1.50 |"),
            "{}",
            table.markdown()
        );
        assert_eq!(table.json()["rows"][0]["cells"]["d"]["to_best_peer"], 1.5);
        assert!(table.json()["rows"][0]["cells"]["c"]["to_best_peer"].is_null());
    }

    #[test]
    fn without_a_peer_nothing_is_compared() {
        let mut table = Table::new("t", &[("a".to_owned(), true)]);
        table.add("a", 0, vec![("step".into(), 1.0)]);
        table.add("a", 1, vec![("step".into(), 3.0)]);
        assert!(
            table.markdown().contains("| step | 2.0 [1.0..3.0] |"),
            "{}",
            table.markdown()
        );
    }
}
