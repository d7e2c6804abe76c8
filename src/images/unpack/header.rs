//! One 512-byte tar header block: ustar, GNU, star and the ancient form without a magic.

/// Size of a header and the unit data is padded to.
pub const BLOCK: usize = 512;

/// Why bytes are not the tar they claim to be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FormatError {
    #[error("header checksum is {found}, the block's bytes add up to {wanted}")]
    Checksum { found: i64, wanted: i64 },
    #[error("field {0} is not a number")]
    Number(&'static str),
    #[error("field {0} is out of range")]
    Range(&'static str),
    #[error("extended header: {0}")]
    Pax(&'static str),
    #[error("extended header of {0} bytes is too large")]
    TooLarge(u64),
    #[error("sparse files are not supported")]
    Sparse,
    #[error("entry type {:?} is not supported", char::from(*.0))]
    Kind(u8),
    #[error("the stream ends inside an entry")]
    Truncated,
    #[error("a name contains a NUL byte")]
    Nul,
    #[error("an extended header without an entry")]
    Dangling,
}

/// The fields of a header, names still without what extended headers add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub kind: u8,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub size: u64,
    pub mtime: i64,
    pub major: u32,
    pub minor: u32,
}

/// Parses a block; `None` is the all-zero block that ends an archive.
pub fn parse(block: &[u8; BLOCK]) -> Result<Option<Header>, FormatError> {
    if block.iter().all(|b| *b == 0) {
        return Ok(None);
    }
    verify_checksum(block)?;
    let kind = block[156];
    let ustar = &block[257..263] == b"ustar\0";
    let gnu = &block[257..265] == b"ustar  \0";
    let star = ustar && &block[508..512] == b"tar\0";
    let mut name = text(&block[..100]).to_vec();
    if ustar {
        let prefix = text(if star { &block[345..476] } else { &block[345..500] });
        if !prefix.is_empty() {
            let mut full = prefix.to_vec();
            full.push(b'/');
            full.append(&mut name);
            name = full;
        }
    }
    // Only these two kinds have device numbers; elsewhere old writers leave rubbish.
    let (major, minor) = if matches!(kind, b'3' | b'4') && (ustar || gnu) {
        (
            small(&block[329..337], "devmajor")?,
            small(&block[337..345], "devminor")?,
        )
    } else {
        (0, 0)
    };
    Ok(Some(Header {
        kind,
        name,
        link: text(&block[157..257]).to_vec(),
        mode: (number(&block[100..108], "mode")? & 0o7777) as u32,
        uid: unsigned(&block[108..116], "uid")?,
        gid: unsigned(&block[116..124], "gid")?,
        size: unsigned(&block[124..136], "size")?,
        mtime: number(&block[136..148], "mtime")?,
        major,
        minor,
    }))
}

/// A field up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    &field[..end]
}

/// The sum counts the checksum's own field as spaces; some old writers summed signed bytes.
fn verify_checksum(block: &[u8; BLOCK]) -> Result<(), FormatError> {
    let found = number(&block[148..156], "checksum")?;
    let own: u32 = block[148..156].iter().map(|b| u32::from(*b)).sum();
    let all: u32 = block.iter().map(|b| u32::from(*b)).sum();
    let wanted = i64::from(all - own) + 8 * i64::from(b' ');
    if found == wanted {
        return Ok(());
    }
    let high = block
        .iter()
        .enumerate()
        .filter(|(i, b)| !(148..156).contains(i) && **b >= 128)
        .count();
    if found == wanted - 256 * high as i64 {
        Ok(())
    } else {
        Err(FormatError::Checksum { found, wanted })
    }
}

fn unsigned(field: &[u8], name: &'static str) -> Result<u64, FormatError> {
    u64::try_from(number(field, name)?).map_err(|_| FormatError::Range(name))
}

fn small(field: &[u8], name: &'static str) -> Result<u32, FormatError> {
    u32::try_from(number(field, name)?).map_err(|_| FormatError::Range(name))
}

/// An octal number, or GNU's base-256 form whose first byte has the high bit set (0xff.. is negative).
fn number(field: &[u8], name: &'static str) -> Result<i64, FormatError> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field, name),
        _ => octal(field, name),
    }
}

fn base256(field: &[u8], name: &'static str) -> Result<i64, FormatError> {
    // Bit 7 marks the form, bit 6 is the sign.
    let negative = field[0] & 0x40 != 0;
    let first = if negative { field[0] } else { field[0] & 0x7f };
    let mut value = if negative {
        i128::from(first as i8)
    } else {
        i128::from(first)
    };
    for byte in &field[1..] {
        value = value << 8 | i128::from(*byte);
    }
    // At most 12 bytes, so i128 cannot overflow.
    i64::try_from(value).map_err(|_| FormatError::Range(name))
}

fn octal(field: &[u8], name: &'static str) -> Result<i64, FormatError> {
    let blank = |b: &u8| *b == b' ' || *b == 0;
    let mut digits = field;
    while let [first, rest @ ..] = digits
        && blank(first)
    {
        digits = rest;
    }
    while let [rest @ .., last] = digits
        && blank(last)
    {
        digits = rest;
    }
    // What follows a NUL or space after the digits is rubbish of some writers.
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => Ok(value << 3 | i64::from(digit - b'0')),
        _ => Err(FormatError::Number(name)),
    })
}
