//! What is read at a time: little while little comes, so that sessions that are quiet hold little memory.

/// Bytes at first and again after little came.
const SMALL: usize = 4 << 10;
/// Bytes while much comes: few system calls and frames, and still within a core's cache.
const LARGE: usize = 256 << 10;

/// A buffer to read into.
#[derive(Debug)]
pub struct Block(Vec<u8>);

impl Block {
    pub fn new() -> Self {
        Self(vec![0; SMALL])
    }

    /// Room for the next read.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// The `count` bytes that have come.
    pub fn filled(&self, count: usize) -> &[u8] {
        self.0.get(..count).unwrap_or_default()
    }

    /// Fits the room for the next read to what came last.
    pub fn adapt(&mut self, count: usize) {
        let size = self.0.len();
        if count == size && size < LARGE {
            self.0 = vec![0; 4 * size];
        } else if count < SMALL / 4 && size > SMALL {
            self.0 = vec![0; SMALL];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_with_what_comes_and_shrinks_again() {
        let mut block = Block::new();
        for expected in [SMALL, 4 * SMALL, 16 * SMALL, LARGE, LARGE] {
            assert_eq!(block.room().len(), expected);
            block.adapt(expected);
        }
        block.adapt(LARGE / 2);
        assert_eq!(block.room().len(), LARGE);
        block.adapt(10);
        assert_eq!(block.room().len(), SMALL);
        block.adapt(10);
        assert_eq!(block.filled(10).len(), 10);
    }
}
