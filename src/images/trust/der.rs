//! As much of DER (X.690) as it takes to find a key and names in a certificate.

/// Elements, one after another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(&'a [u8]);

/// One element.
#[derive(Debug, Clone, Copy)]
pub(super) struct Element<'a> {
    pub tag: u8,
    /// Without tag and length.
    pub content: &'a [u8],
    /// With them.
    pub whole: &'a [u8],
}

/// Tags that are asked for.
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const OBJECT_ID: u8 = 0x06;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const BOOLEAN: u8 = 0x01;
pub(super) const UTF8_STRING: u8 = 0x0c;
/// Of a certificate: `[3]`, its extensions, and `[0]`, its version.
pub(super) const EXTENSIONS: u8 = 0xa3;
pub(super) const VERSION: u8 = 0xa0;

/// The element with this tag and content.
pub(super) fn encode(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(content.len()) {
        Ok(short @ 0..=0x7f) => out.push(short),
        _ => {
            let length = content.len().to_be_bytes();
            let zeros = length.iter().take_while(|byte| **byte == 0).count();
            out.push(0x80 | (length.len() - zeros) as u8);
            out.extend_from_slice(&length[zeros..]);
        }
    }
    out.extend_from_slice(content);
    out
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next element; `None` at the end, or if what follows is none.
    pub fn next(&mut self) -> Option<Element<'a>> {
        let (&tag, rest) = self.0.split_first()?;
        // Tags above 30 take more bytes; no certificate has them.
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                let length = bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                (length, rest)
            }
            // Indefinite, or larger than anything that is read here.
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        let whole = &self.0[..self.0.len() - rest.len()];
        self.0 = rest;
        Some(Element { tag, content, whole })
    }

    /// The next element if it has `tag`; else nothing is taken.
    pub fn next_if(&mut self, tag: u8) -> Option<Element<'a>> {
        let mut ahead = *self;
        let element = ahead.next().filter(|element| element.tag == tag)?;
        *self = ahead;
        Some(element)
    }

    /// Whether there is nothing left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> Element<'a> {
    /// The elements in this one.
    pub fn inner(&self) -> Reader<'a> {
        Reader::new(self.content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_read_again() {
        for length in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x1_0000] {
            let content = vec![7; length];
            let whole = encode(SEQUENCE, &content);
            let element = Reader::new(&whole).next_if(SEQUENCE).unwrap();
            assert_eq!((element.content, element.whole), (&content[..], &whole[..]));
        }
    }

    #[test]
    fn elements_are_read_and_what_is_cut_off_is_none() {
        let mut reader = Reader::new(&[0x30, 3, 0x0c, 1, b'a', 0x04, 0x81, 1, 7]);
        let sequence = reader.next_if(SEQUENCE).unwrap();
        assert_eq!(sequence.inner().next_if(UTF8_STRING).unwrap().content, b"a");
        assert!(reader.next_if(SEQUENCE).is_none());
        let octets = reader.next_if(OCTET_STRING).unwrap();
        assert_eq!((octets.content, octets.whole.len()), (&[7][..], 4));
        assert!(reader.is_empty() && reader.next().is_none());
        for bad in [
            &[0x30][..],
            &[0x30, 2, 1],
            &[0x30, 0x80, 0, 0],
            &[0x30, 0x85, 1, 1, 1, 1, 1],
            &[0x1f, 0x81, 0],
            &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0],
        ] {
            assert!(Reader::new(bad).next().is_none(), "{bad:x?}");
        }
    }
}
