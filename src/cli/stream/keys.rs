//! The keys that leave a container alone, docker's `--detach-keys`.

/// A sequence of keys, as bytes of a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys(Vec<u8>);

/// Finds the sequence in what is typed.
#[derive(Debug)]
pub struct Matcher {
    keys: Vec<u8>,
    /// How many keys of the sequence have been typed; they are held back.
    seen: usize,
}

impl Keys {
    /// Reads for example `ctrl-p,ctrl-q`; empty for none.
    ///
    /// # Errors
    /// When a key is neither a character nor `ctrl-` with a letter or one of `@[\]^_`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let keys = text.split(',').filter(|key| !key.is_empty()).map(key);
        keys.collect::<Option<Vec<u8>>>()
            .map(Self)
            .ok_or_else(|| format!("\"{text}\" is no list of keys such as ctrl-p,ctrl-q"))
    }

    pub fn matcher(&self) -> Matcher {
        Matcher {
            keys: self.0.clone(),
            seen: 0,
        }
    }
}

fn key(text: &str) -> Option<u8> {
    match *text.as_bytes() {
        [byte] if byte.is_ascii() => Some(byte),
        [b'c', b't', b'r', b'l', b'-', byte] => match byte.to_ascii_uppercase() {
            byte @ b'@'..=b'_' => Some(byte - b'@'),
            _ => None,
        },
        _ => None,
    }
}

impl Matcher {
    /// What of `typed` is for the container, and whether the sequence was completed, after which nothing is.
    pub fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(typed.len() + self.seen);
        for &byte in typed {
            if self.keys.get(self.seen) == Some(&byte) {
                self.seen += 1;
                if self.seen == self.keys.len() {
                    return (out, true);
                }
                continue;
            }
            out.extend_from_slice(self.keys.get(..self.seen).unwrap_or_default());
            self.seen = 0;
            if self.keys.first() == Some(&byte) {
                self.seen = 1;
                if self.keys.len() == 1 {
                    return (out, true);
                }
            } else {
                out.push(byte);
            }
        }
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_docker_writes_them() {
        assert_eq!(Keys::parse("ctrl-p,ctrl-q"), Ok(Keys(vec![16, 17])));
        assert_eq!(Keys::parse("ctrl-@,a,ctrl-\\"), Ok(Keys(vec![0, b'a', 28])));
        assert_eq!(Keys::parse(""), Ok(Keys(vec![])));
        for wrong in ["ctrl-", "ctrl-1", "abc", "ä"] {
            assert!(Keys::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_sequence_is_found_however_it_comes() {
        let keys = Keys::parse("ctrl-p,ctrl-q").unwrap();
        let mut matcher = keys.matcher();
        assert_eq!(matcher.pass(b"ls\x10"), (b"ls".to_vec(), false));
        assert_eq!(
            matcher.pass(b"x"),
            (b"\x10x".to_vec(), false),
            "what is held back comes"
        );
        assert_eq!(matcher.pass(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(matcher.pass(b"\x11rest"), (vec![], true));
        let mut none = Keys::parse("").unwrap().matcher();
        assert_eq!(none.pass(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}
