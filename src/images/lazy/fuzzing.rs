//! A door for the fuzz target.

use super::{
    chunked, footer,
    table::{Table, ZEROS},
};

/// A footer, a table in its archive or in its frame, and a table.
pub fn contents(bytes: &[u8]) {
    let _ = footer::offset(bytes);
    let _ = footer::table(bytes);
    let _ = chunked::table(bytes, 1 << 20);
    if let Ok(table) = Table::parse(bytes, 1 << 30) {
        for (at, node) in table.nodes.iter().enumerate() {
            let _ = (table.path(at as u32), &node.kind);
        }
        assert!(
            table
                .chunks
                .iter()
                .all(|chunk| chunk.group == ZEROS || (chunk.group as usize) < table.groups.len())
        );
    }
}
