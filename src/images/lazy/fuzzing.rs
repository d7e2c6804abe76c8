//! A door for the fuzz target.

use super::{footer, table::Table};

/// A footer, a table in its archive, and a table.
pub fn contents(bytes: &[u8]) {
    let _ = footer::offset(bytes);
    let _ = footer::table(bytes);
    if let Ok(table) = Table::parse(bytes, 1 << 30) {
        for (at, node) in table.nodes.iter().enumerate() {
            let _ = (table.path(at as u32), &node.kind);
        }
        assert!(
            table
                .chunks
                .iter()
                .all(|chunk| (chunk.group as usize) < table.groups.len())
        );
    }
}
