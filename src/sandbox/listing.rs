//! A pod's part in lists of containers: encoded one after another, and found again with one look as long as none of them changes.
//! A look at each of a thousand containers takes longer than to send the list.

use std::sync::Arc;

use bytes::Bytes;
use wharf_proto::record;

use crate::store::{Bell, Kept};

/// A container in a list.
#[derive(Debug)]
pub struct Row {
    /// When it was made: Unix time, nanoseconds.
    pub created_at: i64,
    /// The state that is told.
    pub record: Arc<record::Container>,
    /// How it is told: a part of what all rows of the pod have together.
    pub item: Bytes,
}

/// The rows of a pod.
#[derive(Debug, Default)]
pub struct Listing {
    /// To be rung after one of the pod's containers has changed, has come or gone, is hidden or shown.
    pub bell: Bell,
    rows: Kept<Vec<Row>>,
}

impl Listing {
    /// The rows of the containers in `states`, which is asked when one of them has changed; `encode` makes a state's bytes.
    pub fn rows(
        &self,
        states: impl FnOnce() -> Vec<Arc<record::Container>>,
        encode: impl Fn(&record::Container, &mut Vec<u8>),
    ) -> Arc<Vec<Row>> {
        self.rows.of(&self.bell, || {
            let (mut block, mut ends) = (Vec::new(), Vec::new());
            let states = states();
            for state in &states {
                encode(state, &mut block);
                ends.push(block.len());
            }
            let (block, mut begin) = (Bytes::from(block.into_boxed_slice()), 0);
            let row = |(record, end): (Arc<record::Container>, usize)| {
                let item = block.slice(begin..end);
                begin = end;
                Row {
                    created_at: record.created_at,
                    record,
                    item,
                }
            };
            states.into_iter().zip(ends).map(row).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn rows_are_made_anew_when_the_bell_rings() {
        let state = |id: &str| {
            Arc::new(record::Container {
                id: id.into(),
                created_at: 7,
                ..Default::default()
            })
        };
        let listing = Listing::default();
        let encode = |state: &record::Container, to: &mut Vec<u8>| state.encode(to).unwrap();
        let rows = listing.rows(|| vec![state("a"), state("bcd")], encode);
        for (row, id) in rows.iter().zip(["a", "bcd"]) {
            assert_eq!(
                (row.item.as_ref(), row.created_at),
                (state(id).encode_to_vec().as_slice(), 7)
            );
            assert_eq!(row.record.id, id);
        }
        assert_eq!(listing.rows(|| panic!("nothing has changed"), encode).len(), 2);
        listing.bell.ring();
        assert!(listing.rows(Vec::new, encode).is_empty());
    }
}
