//! PAX extended headers: records of the form `LENGTH KEY=VALUE\n`.

use super::header::FormatError;

/// What extended headers say about the entry that follows. `None` leaves the header's own field.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pax {
    pub path: Option<Vec<u8>>,
    pub linkpath: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    /// Seconds and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    /// Name without `SCHILY.xattr.`, value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

const XATTR: &[u8] = b"SCHILY.xattr.";

/// Parses the body of an `x` entry.
pub fn parse(mut body: &[u8]) -> Result<Pax, FormatError> {
    let mut pax = Pax::default();
    while !body.is_empty() {
        let (key, value, rest) = record(body)?;
        body = rest;
        match key {
            // An empty value takes the key back.
            b"path" => pax.path = name(value)?,
            b"linkpath" => pax.linkpath = name(value)?,
            b"size" => pax.size = optional(value, |v| decimal(v).and_then(|n| u64::try_from(n).ok()), "size")?,
            b"uid" => pax.uid = optional(value, |v| decimal(v).and_then(|n| u64::try_from(n).ok()), "uid")?,
            b"gid" => pax.gid = optional(value, |v| decimal(v).and_then(|n| u64::try_from(n).ok()), "gid")?,
            b"mtime" => pax.mtime = optional(value, time, "mtime")?,
            _ if key.starts_with(b"GNU.sparse.") => return Err(FormatError::Sparse),
            _ => {
                if let Some(xattr) = key.strip_prefix(XATTR) {
                    if xattr.is_empty() || xattr.contains(&0) {
                        return Err(FormatError::Pax("xattr without a proper name"));
                    }
                    pax.xattrs.push((xattr.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(pax)
}

type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Key, value and what follows the record.
fn record(body: &[u8]) -> Result<Record<'_>, FormatError> {
    let space = body
        .iter()
        .take(20)
        .position(|b| *b == b' ')
        .ok_or(FormatError::Pax("record without a length"))?;
    let length = decimal(&body[..space])
        .and_then(|n| usize::try_from(n).ok())
        .filter(|n| *n > space + 1 && *n <= body.len())
        .ok_or(FormatError::Pax("record length is wrong"))?;
    let (record, rest) = body.split_at(length);
    let Some((b'\n', record)) = record[space + 1..].split_last() else {
        return Err(FormatError::Pax("record does not end in a newline"));
    };
    let equals = record
        .iter()
        .position(|b| *b == b'=')
        .ok_or(FormatError::Pax("record without ="))?;
    Ok((&record[..equals], &record[equals + 1..], rest))
}

fn name(value: &[u8]) -> Result<Option<Vec<u8>>, FormatError> {
    if value.contains(&0) {
        return Err(FormatError::Nul);
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn optional<T>(
    value: &[u8],
    parse: impl Fn(&[u8]) -> Option<T>,
    field: &'static str,
) -> Result<Option<T>, FormatError> {
    if value.is_empty() {
        return Ok(None);
    }
    parse(value).map(Some).ok_or(FormatError::Number(field))
}

/// Digits only, with an optional minus sign.
fn decimal(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `SECONDS[.FRACTION]`, the fraction counting away from zero.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let dot = text.iter().position(|b| *b == b'.');
    let seconds = decimal(&text[..dot.unwrap_or(text.len())])?;
    let mut nanos = 0u32;
    if let Some(dot) = dot {
        let fraction = &text[dot + 1..];
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for place in 0..9 {
            nanos = nanos * 10 + fraction.get(place).map_or(0, |d| u32::from(d - b'0'));
        }
    }
    if text.first() == Some(&b'-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}
