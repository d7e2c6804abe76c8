//! What a log of certificates (Certificate Transparency) has promised about a certificate: RFC 6962, section 3.2 and 3.3, the
//! form in which the authority puts it into the certificate itself.

use sha2::{Digest as _, Sha256};

use super::{
    der::{BOOLEAN, EXTENSIONS, OBJECT_ID, OCTET_STRING, Reader, SEQUENCE, encode},
    roots::Known,
};

/// 1.3.6.1.4.1.11129.2.4.2.
const EXTENSION: &[u8] = &[0x2b, 6, 1, 4, 1, 0xd6, 0x79, 2, 4, 2];

/// A promise (`SignedCertificateTimestamp`).
struct Promise<'a> {
    /// Digest of the log's key.
    log: &'a [u8],
    /// Milliseconds of Unix time, as signed.
    time: &'a [u8],
    extensions: &'a [u8],
    signature: &'a [u8],
}

/// Checks that one of `logs` has promised to have the certificate `leaf`, issued by one of `issuers` (DER, all).
///
/// # Errors
/// What is wrong, in a few words.
pub(super) fn check(leaf: &[u8], issuers: &[&[u8]], logs: &[Known]) -> Result<(), String> {
    let malformed = || "its certificate is malformed".to_owned();
    let (list, signed) = split(leaf).ok_or_else(malformed)?;
    let Some(list) = list else {
        return Err("its certificate has no promise of a log of certificates".into());
    };
    let promises = promises(list).ok_or("the promises in its certificate are malformed")?;
    let keys: Vec<Vec<u8>> = issuers
        .iter()
        .filter_map(|issuer| key(issuer))
        .map(|key| Sha256::digest(key).to_vec())
        .collect();
    let good = |promise: &Promise<'_>| {
        let seconds = promise.time.try_into().map(u64::from_be_bytes).unwrap_or(u64::MAX) / 1000;
        let logs = || {
            logs.iter()
                .filter(|log| log.id == promise.log && log.is_good_at(seconds))
        };
        keys.iter().any(|issuer| {
            let message = message(promise, issuer, &signed);
            logs().any(|log| log.key.has_signed(&message, promise.signature))
        })
    };
    match promises.iter().any(good) {
        true => Ok(()),
        false => Err("no log of certificates that is trusted has promised to have its certificate".into()),
    }
}

/// What the log signs: the certificate without its promises, and whose it is.
fn message(promise: &Promise<'_>, issuer: &[u8], certificate: &[u8]) -> Vec<u8> {
    // Version 1, certificate_timestamp; the time; precert_entry.
    let mut message = vec![0, 0];
    message.extend_from_slice(promise.time);
    message.extend_from_slice(&[0, 1]);
    message.extend_from_slice(issuer);
    message.extend_from_slice(&(certificate.len() as u32).to_be_bytes()[1..]);
    message.extend_from_slice(certificate);
    message.extend_from_slice(&(promise.extensions.len() as u16).to_be_bytes());
    message.extend_from_slice(promise.extensions);
    message
}

/// The SubjectPublicKeyInfo of a certificate.
fn key(certificate: &[u8]) -> Option<&[u8]> {
    let mut body = body(certificate)?;
    body.next_if(super::der::VERSION);
    // Serial number, algorithm, issuer, validity, subject.
    for _ in 0..5 {
        body.next()?;
    }
    Some(body.next_if(SEQUENCE)?.whole)
}

fn body(certificate: &[u8]) -> Option<Reader<'_>> {
    Some(
        Reader::new(certificate)
            .next_if(SEQUENCE)?
            .inner()
            .next_if(SEQUENCE)?
            .inner(),
    )
}

/// The list of promises in a certificate, and what is signed of it without them.
fn split(certificate: &[u8]) -> Option<(Option<&[u8]>, Vec<u8>)> {
    let mut body = body(certificate)?;
    let (mut list, mut out) = (None, Vec::new());
    while !body.is_empty() {
        let element = body.next()?;
        if element.tag != EXTENSIONS {
            out.extend_from_slice(element.whole);
            continue;
        }
        let mut extensions = element.inner().next_if(SEQUENCE)?.inner();
        let mut kept = Vec::new();
        while !extensions.is_empty() {
            let extension = extensions.next_if(SEQUENCE)?;
            let mut parts = extension.inner();
            if parts.next_if(OBJECT_ID)?.content != EXTENSION {
                kept.extend_from_slice(extension.whole);
                continue;
            }
            parts.next_if(BOOLEAN);
            let value = parts.next_if(OCTET_STRING)?;
            list = Some(value.inner().next_if(OCTET_STRING)?.content);
        }
        out.extend(encode(EXTENSIONS, &encode(SEQUENCE, &kept)));
    }
    Some((list, encode(SEQUENCE, &out)))
}

/// Those in a `SignedCertificateTimestampList` that are of version 1.
fn promises(list: &[u8]) -> Option<Vec<Promise<'_>>> {
    let mut whole = Bytes(list);
    let mut all = Bytes(whole.counted()?);
    let mut found = Vec::new();
    while !all.0.is_empty() {
        let mut one = Bytes(all.counted()?);
        if one.take(1)? != [0] {
            continue;
        }
        found.push(Promise {
            log: one.take(32)?,
            time: one.take(8)?,
            extensions: one.counted()?,
            signature: {
                // SHA-256, and RSA or ECDSA (section 2.1.4).
                if !matches!(one.take(2)?, [4, 1 | 3]) {
                    return None;
                }
                one.counted()?
            },
        });
    }
    whole.0.is_empty().then_some(found)
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// What follows two bytes that say how much it is.
    fn counted(&mut self) -> Option<&'a [u8]> {
        let count = u16::from_be_bytes(self.take(2)?.try_into().ok()?);
        self.take(usize::from(count))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The content of the extension that has one promise, with what `sign` makes of the message for a certificate that has no such
    /// extension yet.
    pub fn extension(
        without: &[u8],
        issuer: &[u8],
        log: &[u8],
        millis: u64,
        sign: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> Vec<u8> {
        let (list, certificate) = split(without).unwrap();
        assert!(list.is_none());
        let time = millis.to_be_bytes();
        let promise = Promise {
            log,
            time: &time,
            extensions: &[],
            signature: &[],
        };
        let signature = sign(&message(&promise, &Sha256::digest(key(issuer).unwrap()), &certificate));
        let counted = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
        // SHA-256 and ECDSA.
        let one = [&[0][..], log, &time, &[0, 0], &[4, 3], &counted(&signature)].concat();
        encode(OCTET_STRING, &counted(&counted(&one)))
    }

    #[test]
    fn lists_that_are_cut_off_are_none() {
        let one = [&[0u8][..], &[1; 32], &[2; 8], &[0, 0], &[4, 3], &[0, 1, 9]].concat();
        let mut list = ((one.len() + 2) as u16).to_be_bytes().to_vec();
        list.extend((one.len() as u16).to_be_bytes());
        list.extend(&one);
        let found = promises(&list).unwrap();
        assert_eq!((found.len(), found[0].signature), (1, &[9][..]));
        for at in 0..list.len() {
            assert!(promises(&list[..at]).is_none(), "{at}");
        }
        assert!(promises(&[list, vec![0]].concat()).is_none());
    }
}
