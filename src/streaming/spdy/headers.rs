//! Compressed header blocks: one zlib stream per direction and connection, with the dictionary of SPDY/3.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::Error;

/// Section 2.6.10.1 of the SPDY/3 draft; its Adler-32 is its name.
pub(super) const DICTIONARY: &[u8] = include_bytes!("dictionary.bin");

/// Most bytes that one header block may unpack to. Clients send a few hundred.
const BLOCK_LIMIT: usize = 32 << 10;
/// Most headers of one block.
const COUNT_LIMIT: usize = 128;
/// Window of what we compress: replies are nearly empty, and the larger windows cost memory per connection.
const WINDOW_BITS: u8 = 10;

/// Names in lower case, and values, in the order in which they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The first value of `name`, which is compared without regard to case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    fn encode(&self) -> Vec<u8> {
        let mut block = Vec::with_capacity(64);
        let mut text = |text: &str| {
            block.extend_from_slice(&(text.len() as u32).to_be_bytes());
            block.extend_from_slice(text.as_bytes());
        };
        for (name, value) in &self.0 {
            text(&name.to_ascii_lowercase());
            text(value);
        }
        let mut out = (self.0.len() as u32).to_be_bytes().to_vec();
        out.append(&mut block);
        out
    }

    fn decode(mut block: &[u8]) -> Result<Self, Error> {
        let number = |block: &mut &[u8]| -> Result<usize, Error> {
            let (head, rest) = block.split_first_chunk::<4>().ok_or(Error::Headers("cut off"))?;
            *block = rest;
            Ok(u32::from_be_bytes(*head) as usize)
        };
        let count = number(&mut block)?;
        if count > COUNT_LIMIT {
            return Err(Error::Headers("too many"));
        }
        let text = |block: &mut &[u8]| -> Result<String, Error> {
            let length = number(block)?;
            let (head, rest) = block.split_at_checked(length).ok_or(Error::Headers("cut off"))?;
            *block = rest;
            String::from_utf8(head.to_vec()).map_err(|_| Error::Headers("not UTF-8"))
        };
        let mut headers = Vec::with_capacity(count);
        for _ in 0..count {
            let name = text(&mut block)?;
            // Several values of one name are separated by NUL; nobody needs more than the whole.
            headers.push((name, text(&mut block)?));
        }
        Ok(Self(headers))
    }
}

/// Compresses blocks; their order on the wire must be the order of the calls.
#[derive(Debug)]
pub struct Deflater(Option<Compress>);

impl Deflater {
    pub fn new() -> Self {
        Self(None)
    }

    /// One block, ready for the wire.
    pub fn pack(&mut self, headers: &Headers) -> Result<Vec<u8>, Error> {
        if self.0.is_none() {
            let mut fresh = Compress::new_with_window_bits(Compression::fast(), true, WINDOW_BITS);
            fresh
                .set_dictionary(DICTIONARY)
                .map_err(|_| Error::Headers("no dictionary"))?;
            self.0 = Some(fresh);
        }
        let Some(zlib) = &mut self.0 else {
            return Err(Error::Headers("no compressor"));
        };
        let mut plain = headers.encode();
        let mut packed = Vec::with_capacity(plain.len() + 64);
        loop {
            let before = zlib.total_in();
            zlib.compress_vec(&plain, &mut packed, FlushCompress::Sync)
                .map_err(|_| Error::Headers("not compressible"))?;
            plain.drain(..(zlib.total_in() - before) as usize);
            // With room left, all has been written, the flush as well.
            if plain.is_empty() && packed.len() < packed.capacity() {
                return Ok(packed);
            }
            packed.reserve(64);
        }
    }
}

/// Unpacks blocks in the order in which they came.
#[derive(Debug)]
pub struct Inflater(Decompress);

impl Inflater {
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// The headers of one block.
    ///
    /// After an error the stream's state is unknown: the connection must end.
    pub fn unpack(&mut self, mut packed: &[u8]) -> Result<Headers, Error> {
        let mut plain = Vec::with_capacity(1024);
        loop {
            let before = self.0.total_in();
            let outcome = self.0.decompress_vec(packed, &mut plain, FlushDecompress::Sync);
            let taken = (self.0.total_in() - before) as usize;
            packed = packed.get(taken..).unwrap_or_default();
            match outcome {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(DICTIONARY)
                        .map_err(|_| Error::Headers("another dictionary"))?;
                    continue;
                }
                Err(_) => return Err(Error::Headers("not zlib")),
                Ok(Status::StreamEnd) => return Err(Error::Headers("the zlib stream ended")),
                Ok(_) => {}
            }
            if packed.is_empty() && plain.len() < plain.capacity() {
                return Headers::decode(&plain);
            }
            if plain.len() < plain.capacity() && taken == 0 {
                return Err(Error::Headers("the zlib stream stands still"));
            }
            if plain.len() >= BLOCK_LIMIT {
                return Err(Error::Headers("larger than allowed"));
            }
            plain.reserve(plain.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        Headers(
            pairs
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
        )
    }

    #[test]
    fn the_dictionary_is_that_of_the_specification() {
        let (a, b) = DICTIONARY.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        assert_eq!((b << 16) | a, 0xe3c6_a7c2);
    }

    #[test]
    fn blocks_survive_the_way_and_share_one_stream() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        let long = "x".repeat(10_000);
        for block in [
            headers(&[("streamtype", "stdin")]),
            headers(&[]),
            headers(&[("port", "80"), ("requestid", "0"), ("streamtype", "error")]),
            headers(&[("long", &long)]),
        ] {
            let packed = deflater.pack(&block).unwrap();
            assert_eq!(inflater.unpack(&packed).unwrap(), block);
        }
    }

    #[test]
    fn names_are_found_in_any_case() {
        assert_eq!(headers(&[("streamtype", "data")]).get("streamType"), Some("data"));
    }

    #[test]
    fn a_bomb_is_refused_before_it_has_unpacked() {
        let bomb = headers(&[("a", &"\0".repeat(4 << 20))]);
        let packed = Deflater::new().pack(&bomb).unwrap();
        assert!(packed.len() < 64 << 10, "a bomb is small: {}", packed.len());
        assert!(Inflater::new().unpack(&packed).is_err());
    }

    #[test]
    fn lies_about_lengths_and_counts_are_refused() {
        for plain in [
            &[][..],
            &[0, 0, 0],
            &[0, 0, 0, 1],
            &[0, 0, 0, 1, 0, 0, 0, 9, b'a'],
            &[0xff; 8],
            &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff],
            &[0, 0, 0, 1, 0, 0, 0, 1, 0xfe, 0, 0, 0, 0],
        ] {
            assert!(Headers::decode(plain).is_err(), "{plain:?}");
        }
    }
}
