//! What a run says: Markdown on standard output, and with `--report DIR` also as `report.md`, `report.json` and plots.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};
use wharf_e2e::Result;

use crate::{Peer, growth::Point, plot, table::Table};

/// Everything that one run has measured.
pub struct Report {
    head: String,
    machine: Value,
    versions: Value,
    tables: Vec<Table>,
    growth: Vec<(String, Vec<Point>)>,
}

impl Report {
    /// Says on which machine what is compared.
    ///
    /// # Errors
    /// When a runtime does not answer.
    pub async fn begin(peers: &[Peer], rounds: usize) -> Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let kernel = read("/proc/sys/kernel/osrelease");
        let load = read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned();
        let memory = read("/proc/meminfo");
        let memory: u64 = memory
            .split_whitespace()
            .nth(1)
            .and_then(|kib| kib.parse().ok())
            .unwrap_or(0);
        let mut head = format!(
            "{cpus} processors, {} GiB, Linux {kernel}, load {load} at the start. {rounds} rounds, endpoint after endpoint in each; a cell \
             is the median of the rounds' medians [lowest..highest], ×: its share of the best peer's.\n\n",
            memory >> 20
        );
        let mut versions = serde_json::Map::new();
        for peer in peers {
            let version = peer.cri.version().await?;
            let _ = writeln!(
                head,
                "- {}: {} {}{}{}",
                peer.name,
                version.runtime_name,
                version.runtime_version,
                if peer.handler.is_empty() {
                    String::new()
                } else {
                    format!(", handler {}", peer.handler)
                },
                if peer.ours { "" } else { " (peer)" }
            );
            versions.insert(
                peer.name.clone(),
                json!({ "runtime": version.runtime_name, "version": version.runtime_version, "handler": peer.handler, "ours": peer.ours }),
            );
        }
        Ok(Self {
            head,
            machine: json!({ "processors": cpus, "memory_kib": memory, "kernel": kernel, "load": load, "rounds": rounds }),
            versions: Value::Object(versions),
            tables: vec![],
            growth: vec![],
        })
    }

    /// Prints a table and keeps it.
    pub fn add(&mut self, table: Table) {
        println!("{}", table.markdown());
        self.tables.push(table);
    }

    pub fn grown(&mut self, name: &str, points: Vec<Point>) {
        self.growth.push((name.to_owned(), points));
    }

    fn markdown(&self) -> String {
        let mut out = format!("## Wharf beside its peers\n\n{}\n", self.head);
        for table in &self.tables {
            let _ = writeln!(out, "{}", table.markdown());
        }
        for (file, title, _, _) in PLOTS.iter().filter(|_| !self.growth.is_empty()) {
            let _ = writeln!(out, "![{title}]({file}.svg)");
        }
        out
    }

    /// Writes all into `dir`, which is made.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn write(&self, dir: &Path) -> Result {
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join("report.md"), self.markdown())?;
        let growth: serde_json::Map<_, _> = self
            .growth
            .iter()
            .map(|(name, points)| (name.clone(), points.iter().map(Point::json).collect()))
            .collect();
        let tables: Vec<Value> = self.tables.iter().map(Table::json).collect();
        let whole = json!({ "machine": self.machine, "endpoints": self.versions, "tables": tables, "growth": growth });
        std::fs::write(dir.join("report.json"), serde_json::to_string_pretty(&whole)? + "\n")?;
        for (file, title, unit, value) in PLOTS {
            let lines: Vec<plot::Line> = self
                .growth
                .iter()
                .map(|(name, points)| plot::Line {
                    name: name.clone(),
                    points: points.iter().map(|point| (point.pods as f64, value(point))).collect(),
                })
                .collect();
            let text = plot::svg(title, unit, &lines);
            if !text.is_empty() {
                std::fs::write(dir.join(format!("{file}.svg")), text)?;
            }
        }
        Ok(())
    }
}

/// File, title, unit and value of each plot.
type Plot = (&'static str, &'static str, &'static str, fn(&Point) -> f64);
const PLOTS: [Plot; 4] = [
    (
        "pod-ready",
        "Until one more pod is ready, beside so many",
        "ms",
        |point| point.ready,
    ),
    ("cycle", "A pod's whole cycle, beside so many", "ms", |point| {
        point.cycle
    }),
    ("list", "ListContainers, median", "ms", |point| point.list.0),
    ("memory", "Memory of the runtime, all processes", "MiB PSS", |point| {
        point.total() / 1024.0
    }),
];
