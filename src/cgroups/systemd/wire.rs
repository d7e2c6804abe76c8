//! D-Bus messages as bytes: as much of the wire format as calls to systemd's manager need
//! (D-Bus specification, "Type System" and "Message Protocol").

use std::io;

/// Method call, answer, error, signal.
pub const CALL: u8 = 1;
pub const RETURN: u8 = 2;
pub const ERROR: u8 = 3;
pub const SIGNAL: u8 = 4;

/// Bytes before the array of header fields, with that array's length.
pub const FIXED: usize = 16;
/// Messages that are longer are not systemd's to us.
const LONGEST: usize = 16 << 20;
const ENDIAN: u8 = if cfg!(target_endian = "little") { b'l' } else { b'B' };

/// The value of a unit's property.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Bool(bool),
    U64(u64),
    Text(String),
    U32s(Vec<u32>),
    /// Such as a set of CPUs, a bit each.
    Bytes(Vec<u8>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Value::Bool(_) => "b",
            Value::U64(_) => "t",
            Value::Text(_) => "s",
            Value::U32s(_) => "au",
            Value::Bytes(_) => "ay",
        }
    }
}

/// Writes a body. Every value is aligned to its size, counted from the body's beginning, which is aligned to 8 itself.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    fn pad(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    pub fn u32(&mut self, value: u32) {
        self.pad(4);
        self.0.extend(value.to_ne_bytes());
    }

    pub fn bool(&mut self, value: bool) {
        self.u32(value.into());
    }

    /// A string or an object path.
    pub fn text(&mut self, text: &str) {
        // Lengths are bounded by what callers give: names and descriptions.
        self.u32(text.len() as u32);
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.0.push(signature.len() as u8);
        self.0.extend(signature.as_bytes());
        self.0.push(0);
    }

    /// An array whose elements are aligned to `align`, and are written by `fill`.
    pub fn array(&mut self, align: usize, fill: impl FnOnce(&mut Writer)) {
        self.u32(0);
        let length = self.0.len() - 4;
        self.pad(align);
        let begin = self.0.len();
        fill(self);
        let bytes = (self.0.len() - begin) as u32;
        self.0[length..length + 4].copy_from_slice(&bytes.to_ne_bytes());
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(value) => self.bool(*value),
            Value::U64(value) => {
                self.pad(8);
                self.0.extend(value.to_ne_bytes());
            }
            Value::Text(value) => self.text(value),
            Value::U32s(values) => self.array(4, |out| values.iter().for_each(|value| out.u32(*value))),
            Value::Bytes(bytes) => self.array(1, |out| out.0.extend(bytes)),
        }
    }

    /// `a(sv)`.
    pub fn properties(&mut self, properties: &[(&str, Value)]) {
        self.array(8, |out| {
            for (name, value) in properties {
                out.pad(8);
                out.text(name);
                out.variant(value);
            }
        });
    }
}

/// A method to be called, at an object of `destination`.
#[derive(Debug, Clone, Copy)]
pub struct Method {
    pub destination: &'static str,
    pub object: &'static str,
    pub interface: &'static str,
    pub name: &'static str,
    /// Types of the arguments.
    pub signature: &'static str,
}

/// The bytes of a call.
pub fn call(method: &Method, serial: u32, body: Writer) -> Vec<u8> {
    let mut out = Writer(vec![ENDIAN, CALL, 0, 1]);
    out.u32(body.0.len() as u32);
    out.u32(serial);
    out.array(8, |out| {
        for (code, signature, value) in [
            (1, "o", method.object),
            (2, "s", method.interface),
            (3, "s", method.name),
            (6, "s", method.destination),
        ] {
            out.pad(8);
            out.0.push(code);
            out.signature(signature);
            out.text(value);
        }
        if !method.signature.is_empty() {
            out.pad(8);
            out.0.push(8);
            out.signature("g");
            out.signature(method.signature);
        }
    });
    out.pad(8);
    out.0.extend(body.0);
    out.0
}

/// A message that has come.
#[derive(Debug, Default)]
pub struct Message {
    pub kind: u8,
    /// Serial of the call that this answers.
    pub answers: u32,
    /// Of an error.
    pub error: String,
    /// Of a signal.
    pub member: String,
    pub body: Vec<u8>,
}

/// What follows the first [`FIXED`] bytes: header fields with their padding, and body, in bytes.
///
/// # Errors
/// When these are not the first bytes of a message that can be read.
pub fn rest(fixed: &[u8; FIXED]) -> io::Result<(usize, usize)> {
    if fixed[0] != ENDIAN || fixed[3] != 1 {
        return Err(broken("not this version of D-Bus, or of another byte order"));
    }
    let mut reader = Reader::new(fixed, 4);
    let body = reader.u32()? as usize;
    reader.u32()?;
    let fields = reader.u32()? as usize;
    if body > LONGEST || fields > LONGEST {
        return Err(broken("a message that is too long"));
    }
    Ok((fields.next_multiple_of(8), body))
}

/// Reads header fields and body.
///
/// # Errors
/// When the bytes are not such.
pub fn message(fixed: &[u8; FIXED], fields: &[u8], body: Vec<u8>) -> io::Result<Message> {
    let mut found = Message {
        kind: fixed[1],
        body,
        ..Message::default()
    };
    let mut length = Reader::new(fixed, 12);
    let fields = fields
        .get(..length.u32()? as usize)
        .ok_or_else(|| broken("header fields are cut off"))?;
    let mut reader = Reader::new(fields, 0);
    while reader.at < fields.len() {
        reader.pad(8);
        let code = reader.byte()?;
        let signature = reader.signature()?;
        match (code, signature.as_str()) {
            (3, "s") => found.member = reader.text()?,
            (4, "s") => found.error = reader.text()?,
            (5, "u") => found.answers = reader.u32()?,
            (_, "s" | "o") => drop(reader.text()?),
            (_, "u") => drop(reader.u32()?),
            (_, "g") => drop(reader.signature()?),
            _ => return Err(broken("a header field of an unknown type")),
        }
    }
    Ok(found)
}

/// Reads values of a body.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    fn pad(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| broken("a message that is cut off"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> io::Result<u8> {
        Ok(self.take(1)?[0])
    }

    pub fn u32(&mut self) -> io::Result<u32> {
        self.pad(4);
        let bytes = self.take(4)?;
        Ok(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A string or an object path.
    pub fn text(&mut self) -> io::Result<String> {
        let length = self.u32()? as usize;
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.byte()?;
        Ok(text)
    }

    fn signature(&mut self) -> io::Result<String> {
        let length = self.byte()? as usize;
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.byte()?;
        Ok(text)
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("D-Bus: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHOD: Method = Method {
        destination: "a.b",
        object: "/o",
        interface: "i.f",
        name: "Do",
        signature: "sa(sv)",
    };

    fn parse(bytes: &[u8]) -> io::Result<Message> {
        let fixed: &[u8; FIXED] = bytes.first_chunk().ok_or_else(|| broken("short"))?;
        let (fields, body) = rest(fixed)?;
        let all = bytes.get(FIXED..FIXED + fields + body).ok_or_else(|| broken("short"))?;
        message(fixed, &all[..fields], all[fields..].to_vec())
    }

    #[test]
    fn a_call_is_laid_out_as_the_specification_says() {
        let mut body = Writer::default();
        body.text("unit");
        body.properties(&[
            ("A", Value::Bool(true)),
            ("B", Value::U64(7)),
            ("C", Value::U32s(vec![0])),
            ("D", Value::Bytes(vec![3])),
        ]);
        let bytes = call(&METHOD, 5, body);
        if cfg!(target_endian = "little") {
            assert_eq!(&bytes[..4], b"l\x01\x00\x01");
            assert_eq!(&bytes[8..12], &5u32.to_le_bytes());
        }
        let message = parse(&bytes).unwrap();
        assert_eq!((message.kind, message.member.as_str()), (CALL, "Do"));
        let mut reader = Reader::new(&message.body, 0);
        assert_eq!(reader.text().unwrap(), "unit");
        let array = reader.u32().unwrap() as usize;
        reader.pad(8);
        assert_eq!(reader.at + array, message.body.len());
        assert_eq!(reader.text().unwrap(), "A");
        assert_eq!(reader.signature().unwrap(), "b");
        assert_eq!(reader.u32().unwrap(), 1);
        reader.pad(8);
        assert_eq!(
            (reader.text().unwrap(), reader.signature().unwrap()),
            ("B".into(), "t".into())
        );
        reader.pad(8);
        assert_eq!(reader.take(8).unwrap(), 7u64.to_ne_bytes());
    }

    #[test]
    fn what_is_cut_off_or_foreign_is_an_error() {
        let bytes = call(&METHOD, 1, Writer::default());
        for length in 0..bytes.len() {
            assert!(parse(&bytes[..length]).is_err(), "{length} bytes");
        }
        let mut other = bytes.clone();
        other[0] = b'x';
        assert!(parse(&other).is_err());
        let mut long = bytes;
        long[12..16].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(parse(&long).is_err());
    }
}
