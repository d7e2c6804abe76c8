//! Names of entries: made safe, and told apart from whiteouts.

/// Bytes of a name, as the kernel's PATH_MAX.
const MAX_NAME: usize = 4096;
/// Components of a name; one descriptor is held for each while the extraction is inside.
const MAX_DEPTH: usize = 256;

/// Why a name is refused.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    #[error("the name is empty")]
    Empty,
    #[error("the name has a `..` component")]
    DotDot,
    #[error("the name is longer than {MAX_NAME} bytes")]
    TooLong,
    #[error("the name is deeper than {MAX_DEPTH} directories")]
    TooDeep,
    #[error("the name contains a NUL byte")]
    Nul,
    #[error("the whiteout names no file")]
    Whiteout,
    #[error("a whiteout is used as a directory")]
    InsideWhiteout,
}

/// Splits a name into components below the layer's root. A leading `/`, repeated `/` and `.` vanish.
pub fn components(name: &[u8]) -> Result<Vec<&[u8]>, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_NAME {
        return Err(NameError::TooLong);
    }
    if name.contains(&0) {
        return Err(NameError::Nul);
    }
    let mut parts = Vec::with_capacity(8);
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(NameError::DotDot),
            _ => parts.push(part),
        }
    }
    if parts.len() > MAX_DEPTH {
        Err(NameError::TooDeep)
    } else {
        Ok(parts)
    }
}

/// What an entry's name stands for.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// The layer's root itself.
    Root,
    /// A thing named by the last component.
    Plain(&'a [u8]),
    /// Hides the thing of that name in lower layers.
    Whiteout(&'a [u8]),
    /// Hides all that lower layers have in this directory.
    Opaque,
    /// Bookkeeping of aufs (`.wh..wh.plnk`, `.wh..wh.aufs`), which means nothing in an image.
    Ignored,
}

/// Reads the whiteout conventions of the OCI image specification (layer.md, "Whiteouts").
pub fn meaning<'a>(parts: &[&'a [u8]]) -> Result<Meaning<'a>, NameError> {
    let Some((last, parents)) = parts.split_last() else {
        return Ok(Meaning::Root);
    };
    for parent in parents {
        if parent.starts_with(b".wh..wh.") && parent.len() > b".wh..wh.".len() && *parent != b".wh..wh..opq" {
            return Ok(Meaning::Ignored);
        }
        if parent.starts_with(b".wh.") {
            return Err(NameError::InsideWhiteout);
        }
    }
    match last.strip_prefix(b".wh.") {
        None => Ok(Meaning::Plain(last)),
        Some(b"" | b"." | b"..") => Err(NameError::Whiteout),
        Some(b".wh..opq") => Ok(Meaning::Opaque),
        Some(hidden) if hidden.starts_with(b".wh.") => Ok(Meaning::Ignored),
        Some(hidden) => Ok(Meaning::Whiteout(hidden)),
    }
}
