//! As much of DNS messages (RFC 1035) as a resolver needs that answers a few names itself and hands on the rest whole:
//! the header and the one question. Answers that come from elsewhere are not taken apart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Length of the header.
pub(super) const HEADER: usize = 12;
/// Longest answer over UDP to who does not ask for more (RFC 1035, 4.2.1).
pub(super) const UDP: usize = 512;
/// For so many seconds an answer may be kept: what it tells changes at any moment.
const TTL: u32 = 1;
/// Longest name, with its length bytes (RFC 1035, 2.3.4).
const LONGEST: usize = 255;

/// Types of records.
pub(super) const A: u16 = 1;
pub(super) const PTR: u16 = 12;
pub(super) const AAAA: u16 = 28;
/// The class of the Internet.
pub(super) const IN: u16 = 1;

/// `RCODE`: what became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Outcome {
    Answered = 0,
    Malformed = 1,
    Failed = 2,
    NotImplemented = 4,
}

/// A question.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Question {
    /// Without a dot at the end, in small letters.
    pub(super) name: String,
    pub(super) kind: u16,
    pub(super) class: u16,
    /// Where it ends in the message.
    pub(super) end: usize,
}

/// What can be told of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Address(IpAddr),
    Name(String),
}

/// Reads a message that asks one thing.
///
/// # Errors
/// What to answer; none if it is not to be answered at all.
pub(super) fn question(message: &[u8]) -> Result<Question, Option<Outcome>> {
    let header = message.get(..HEADER).ok_or(None)?;
    // An answer is no question: answering it could go on for ever.
    if header[2] & 0x80 != 0 {
        return Err(None);
    }
    if header[2] & 0x78 != 0 {
        return Err(Some(Outcome::NotImplemented));
    }
    if header[4..6] != [0, 1] {
        return Err(Some(Outcome::Malformed));
    }
    read(message).ok_or(Some(Outcome::Malformed))
}

fn read(message: &[u8]) -> Option<Question> {
    let (mut at, mut name) = (HEADER, String::new());
    loop {
        let length = usize::from(*message.get(at)?);
        // Longer ones are pointers, which a first name has nothing to point to.
        if length > 63 || at - HEADER > LONGEST {
            return None;
        }
        let label = message.get(at + 1..=at + length)?;
        at += 1 + length;
        if length == 0 {
            break;
        }
        if !name.is_empty() {
            name.push('.');
        }
        // What is not ASCII is nobody's name here, and is handed on as it came.
        name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    let numbers = message.get(at..at + 4)?;
    Some(Question {
        name,
        kind: u16::from_be_bytes([numbers[0], numbers[1]]),
        class: u16::from_be_bytes([numbers[2], numbers[3]]),
        end: at + 4,
    })
}

/// The answer to `asked`, whose question ends at `end`; with no more bytes than `most`, and a mark if that is too few.
pub(super) fn answer(asked: &[u8], end: usize, outcome: Outcome, records: &[Record], most: usize) -> Vec<u8> {
    let mut out = asked.get(..end.min(asked.len())).unwrap_or_default().to_vec();
    out.resize(out.len().max(HEADER), 0);
    // An answer, with authority, recursion as wished and available.
    out[2] = 0x84 | out[2] & 0x79;
    out[3] = 0x80 | outcome as u8;
    let questions: u16 = if end > HEADER { 1 } else { 0 };
    let mut count: u16 = 0;
    for record in records {
        let (kind, data) = match record {
            Record::Address(IpAddr::V4(v4)) => (A, v4.octets().to_vec()),
            Record::Address(IpAddr::V6(v6)) => (AAAA, v6.octets().to_vec()),
            Record::Name(name) => (PTR, labels(name)),
        };
        if out.len() + 12 + data.len() > most {
            // TC: the rest fits over TCP.
            out[2] |= 0x02;
            break;
        }
        // The name is that of the question.
        out.extend([0xc0, HEADER as u8]);
        out.extend(kind.to_be_bytes());
        out.extend(IN.to_be_bytes());
        out.extend(TTL.to_be_bytes());
        out.extend((data.len() as u16).to_be_bytes());
        out.extend(data);
        count += 1;
    }
    out[4..6].copy_from_slice(&questions.to_be_bytes());
    out[6..8].copy_from_slice(&count.to_be_bytes());
    out[8..HEADER].fill(0);
    out
}

fn labels(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let bytes = &label.as_bytes()[..label.len().min(63)];
        out.push(bytes.len() as u8);
        out.extend(bytes);
    }
    out.push(0);
    out
}

/// The address that the name of a reverse question stands for (RFC 1035, 3.5; RFC 3596, 2.5).
pub(super) fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(v4) = name.strip_suffix(".in-addr.arpa") {
        let octets: Vec<u8> = v4.rsplit('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        return Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into());
    }
    let digits: Vec<u8> = name
        .strip_suffix(".ip6.arpa")?
        .rsplit('.')
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|digit| *digit < 16))
        .collect::<Option<_>>()?;
    let digits = <[u8; 32]>::try_from(digits).ok()?;
    let bits = digits.iter().fold(0u128, |bits, digit| bits << 4 | u128::from(*digit));
    Some(Ipv6Addr::from_bits(bits).into())
}

#[cfg(test)]
pub(in crate::netns) mod tests {
    use super::*;

    /// A message that asks for `name`.
    pub(in crate::netns) fn ask(id: u16, name: &str, kind: u16) -> Vec<u8> {
        let mut out = id.to_be_bytes().to_vec();
        out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        out.extend(labels(name));
        out.extend(kind.to_be_bytes());
        out.extend(IN.to_be_bytes());
        out
    }

    #[test]
    fn a_question_is_read_and_answered() {
        let asked = ask(7, "Web.Example", A);
        let question = question(&asked).unwrap();
        assert_eq!(
            (question.name.as_str(), question.kind, question.class),
            ("web.example", A, IN)
        );
        assert_eq!(question.end, asked.len());
        let address = Record::Address("10.1.2.3".parse().unwrap());
        let answer = answer(&asked, question.end, Outcome::Answered, &[address], UDP);
        assert_eq!(answer[..12], [0, 7, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(
            answer[asked.len()..],
            [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 10, 1, 2, 3]
        );
    }

    #[test]
    fn what_does_not_fit_is_marked() {
        let asked = ask(7, "web", AAAA);
        let many = vec![Record::Address("fd00::1".parse().unwrap()); 50];
        let short = answer(&asked, asked.len(), Outcome::Answered, &many, UDP);
        assert!(short.len() <= UDP && short[2] & 2 != 0);
        let whole = answer(&asked, asked.len(), Outcome::Answered, &many, usize::from(u16::MAX));
        assert_eq!((whole[2] & 2, whole[7]), (0, 50));
    }

    #[test]
    fn hostile_messages_are_refused_and_answers_are_not_answered() {
        let asked = ask(7, "a.b", A);
        for cut in HEADER..asked.len() {
            assert_eq!(question(&asked[..cut]), Err(Some(Outcome::Malformed)), "{cut}");
        }
        assert_eq!(question(&asked[..5]), Err(None));
        let mut pointer = asked.clone();
        pointer[HEADER] = 0xc0;
        assert_eq!(question(&pointer), Err(Some(Outcome::Malformed)));
        let mut reply = asked.clone();
        reply[2] |= 0x80;
        assert_eq!(question(&reply), Err(None));
        let mut update = asked.clone();
        update[2] |= 0x28;
        assert_eq!(question(&update), Err(Some(Outcome::NotImplemented)));
        let mut long = asked[..HEADER].to_vec();
        long.extend([1, b'a'].repeat(300));
        assert_eq!(question(&long), Err(Some(Outcome::Malformed)));
    }

    #[test]
    fn reverse_names_are_addresses() {
        for (name, address) in [
            ("4.3.2.1.in-addr.arpa", Some("1.2.3.4")),
            (
                "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
                Some("fd00::1"),
            ),
            ("3.2.1.in-addr.arpa", None),
            ("1.ip6.arpa", None),
            ("web", None),
        ] {
            assert_eq!(reversed(name), address.map(|text| text.parse().unwrap()), "{name}");
        }
    }
}
