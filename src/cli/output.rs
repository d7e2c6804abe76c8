//! Tables, JSON and YAML on stdout.

use std::io::{self, Write as _};

use clap::ValueEnum;
use prost::Message;
use serde_json::Value;

use super::error::{Error, Result};

/// Form of a command's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// The CRI message in protobuf's JSON form, as crictl prints it.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Rows of text under headings.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings and no row yet.
    pub fn new(headings: &[&str]) -> Self {
        Self {
            rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()],
        }
    }

    /// Adds a row; cells beyond the headings are dropped when printed.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(printable).collect());
    }

    /// The text, columns padded to their widest cell and three spaces apart.
    pub fn render(&self) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows
                    .iter()
                    .filter_map(|row| row.get(column))
                    .map(|cell| width(cell))
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width_of_column) in row.iter().zip(&widths) {
                let pad = width_of_column + 3 - width(cell).min(*width_of_column);
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', pad));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// Writes the table to stdout.
    pub fn print(&self) -> Result<()> {
        text(&self.render())
    }
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

/// Names come from pods and images: what would steer the terminal is shown, not sent.
pub fn printable(cell: String) -> String {
    if cell.chars().any(char::is_control) {
        cell.escape_default().to_string()
    } else {
        cell
    }
}

/// Writes text as it is.
pub fn text(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Writes one line.
pub fn line(line: &str) -> Result<()> {
    text(&format!("{line}\n"))
}

/// Writes one line to stderr. If nobody reads it there is nobody to tell.
pub fn note(line: impl std::fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes a message, whose protobuf name is `name`, with defaults as crictl does; `format` must not be a table.
pub fn message<M: Message>(format: Format, name: &str, message: &M) -> Result<()> {
    value(format, &to_json(name, message)?)
}

/// The JSON form of a message, with defaults as crictl prints them.
pub fn to_json<M: Message>(name: &str, message: &M) -> Result<Value> {
    wharf_proto::json::to_value(name, message, true).map_err(|error| Error::new(error.to_string()))
}

/// Writes a JSON value in the format asked for; a table is written as JSON.
pub fn value(format: Format, value: &Value) -> Result<()> {
    let mut out = match format {
        Format::Yaml => serde_saphyr::to_string(value).map_err(|error| Error::new(format!("write YAML: {error}")))?,
        Format::Json | Format::Table => {
            serde_json::to_string_pretty(value).map_err(|error| Error::new(format!("write JSON: {error}")))?
        }
    };
    if !out.ends_with('\n') {
        out.push('\n');
    }
    text(&out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["ID", "NAME", "STATE"]);
        table.row(["0123".into(), "a".into(), "Running".into()]);
        table.row(["5".into(), "größer".into(), String::new()]);
        assert_eq!(
            table.render(),
            "ID     NAME     STATE\n0123   a        Running\n5      größer\n"
        );
    }

    #[test]
    fn a_name_can_not_steer_the_terminal() {
        let mut table = Table::new(&["NAME"]);
        table.row(["a\x1b[2Jb".into()]);
        assert_eq!(table.render(), "NAME\na\\u{1b}[2Jb\n");
    }
}
