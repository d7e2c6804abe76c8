//! Timestamps (RFC 3161): an authority's word for when it was shown a signature, where the log that has it does not say so.
//!
//! A response has a token, which is a message (CMS, RFC 5652) with one signature, around a `TSTInfo` with a digest and a time.

use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use super::{
    certificate,
    der::{BOOLEAN, INTEGER, OBJECT_ID, OCTET_STRING, Reader, SEQUENCE, SET, encode},
    roots::Authority,
};

/// id-signedData, 1.2.840.113549.1.7.2.
const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2];
/// id-ct-TSTInfo, 1.2.840.113549.1.9.16.1.4.
const TST_INFO: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 16, 1, 4];
/// id-contentType and id-messageDigest, 1.2.840.113549.1.9.3 and .4.
const CONTENT_TYPE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 3];
const MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 4];
/// id-kp-timeStamping, 1.3.6.1.5.5.7.3.8.
const TIME_STAMPING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 8];
/// SHA-256, SHA-384 and SHA-512 are 2.16.840.1.101.3.4.2.1 to .3.
const SHA2: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2];

const GENERALIZED_TIME: u8 = 0x18;
/// `[0]` and `[1]`, with elements in them.
const FIRST: u8 = 0xa0;
const SECOND: u8 = 0xa1;

/// When one of `authorities` was shown `signature`, by its `response`; seconds of Unix time.
///
/// # Errors
/// What is wrong, in a few words.
pub(super) fn check(response: &[u8], signature: &[u8], authorities: &[Authority]) -> Result<u64, String> {
    let token = Token::read(response).ok_or("its timestamp is malformed, or refused by its authority")?;
    let info = Info::read(token.info).ok_or("what its timestamp says can't be read")?;
    if digest(info.algorithm, signature).as_deref() != Some(info.digest) {
        return Err("its timestamp is of something else".into());
    }
    if digest(token.algorithm, token.info).as_deref() != Some(token.digest) {
        return Err("its timestamp says something else than was signed".into());
    }
    // What is signed is the set of attributes, with the tag of one.
    let signed = encode(SET, token.attributes);
    let at = info.at;
    let mut reason = "it has a timestamp, but of no authority that is trusted".to_owned();
    for authority in authorities.iter().filter(|authority| authority.is_good_at(at)) {
        let known = authority.chain.iter().map(AsRef::as_ref);
        for leaf in token.certificates.iter().copied().chain(known) {
            let Ok((key, extensions)) = certificate::parts(leaf) else {
                continue;
            };
            if !certificate::is_for(&extensions, TIME_STAMPING) || !key.has_signed(&signed, token.signature) {
                continue;
            }
            let between: Vec<_> = token
                .certificates
                .iter()
                .map(|der| CertificateDer::from(*der))
                .collect();
            match certificate::leads(leaf, &between, authority.chain.iter(), TIME_STAMPING, at) {
                Ok(()) => return Ok(at),
                Err(error) => reason = format!("the certificate of its timestamp: {error}"),
            }
        }
    }
    Err(reason)
}

/// `SHA2_...` of `bytes` by the algorithm's object identifier.
fn digest(algorithm: &[u8], bytes: &[u8]) -> Option<Vec<u8>> {
    Some(match algorithm.strip_prefix(SHA2)? {
        [1] => Sha256::digest(bytes).to_vec(),
        [2] => Sha384::digest(bytes).to_vec(),
        [3] => Sha512::digest(bytes).to_vec(),
        _ => return None,
    })
}

/// The parts of a token that count.
struct Token<'a> {
    /// The `TSTInfo`.
    info: &'a [u8],
    certificates: Vec<&'a [u8]>,
    /// Of the digest in the attributes.
    algorithm: &'a [u8],
    /// That of `info`, by the attributes.
    digest: &'a [u8],
    attributes: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Token<'a> {
    /// Reads a response (`TimeStampResp`) that grants a token.
    fn read(response: &'a [u8]) -> Option<Self> {
        let mut outer = Reader::new(response);
        let mut response = outer.next_if(SEQUENCE).filter(|_| outer.is_empty())?.inner();
        let status = response.next_if(SEQUENCE)?.inner().next_if(INTEGER)?;
        // Granted, or granted with changes.
        if !matches!(status.content, [0 | 1]) {
            return None;
        }
        let mut message = response.next_if(SEQUENCE)?.inner();
        if message.next_if(OBJECT_ID)?.content != SIGNED_DATA {
            return None;
        }
        let mut signed = message.next_if(FIRST)?.inner().next_if(SEQUENCE)?.inner();
        signed.next_if(INTEGER)?;
        signed.next_if(SET)?;
        let mut content = signed.next_if(SEQUENCE)?.inner();
        if content.next_if(OBJECT_ID)?.content != TST_INFO {
            return None;
        }
        let info = content.next_if(FIRST)?.inner().next_if(OCTET_STRING)?.content;
        let mut certificates = Vec::new();
        if let Some(list) = signed.next_if(FIRST) {
            let mut list = list.inner();
            while let Some(certificate) = list.next_if(SEQUENCE) {
                certificates.push(certificate.whole);
            }
        }
        signed.next_if(SECOND);
        let mut signers = signed.next_if(SET)?.inner();
        let mut signer = signers.next_if(SEQUENCE).filter(|_| signers.is_empty())?.inner();
        signer.next_if(INTEGER)?;
        // Who it is; the key tells that better.
        signer.next()?;
        let algorithm = signer.next_if(SEQUENCE)?.inner().next_if(OBJECT_ID)?.content;
        let attributes = signer.next_if(FIRST)?;
        signer.next_if(SEQUENCE)?;
        let signature = signer.next_if(OCTET_STRING)?.content;
        let (mut kind, mut digest) = (None, None);
        let mut list = attributes.inner();
        while let Some(attribute) = list.next_if(SEQUENCE) {
            let mut parts = attribute.inner();
            let name = parts.next_if(OBJECT_ID)?.content;
            let value = parts.next_if(SET)?.inner().next()?;
            let twice = match name {
                CONTENT_TYPE => kind.replace(value),
                MESSAGE_DIGEST => digest.replace(value),
                _ => None,
            };
            if twice.is_some() {
                return None;
            }
        }
        if !list.is_empty() || kind.is_none_or(|kind| kind.tag != OBJECT_ID || kind.content != TST_INFO) {
            return None;
        }
        Some(Self {
            info,
            certificates,
            algorithm,
            digest: digest.filter(|digest| digest.tag == OCTET_STRING)?.content,
            attributes: attributes.content,
            signature,
        })
    }
}

/// What the authority says.
struct Info<'a> {
    algorithm: &'a [u8],
    digest: &'a [u8],
    at: u64,
}

impl<'a> Info<'a> {
    fn read(info: &'a [u8]) -> Option<Self> {
        let mut outer = Reader::new(info);
        let mut info = outer.next_if(SEQUENCE).filter(|_| outer.is_empty())?.inner();
        if info.next_if(INTEGER)?.content != [1] {
            return None;
        }
        info.next_if(OBJECT_ID)?;
        let mut imprint = info.next_if(SEQUENCE)?.inner();
        let algorithm = imprint.next_if(SEQUENCE)?.inner().next_if(OBJECT_ID)?.content;
        let digest = imprint.next_if(OCTET_STRING)?.content;
        info.next_if(INTEGER)?;
        let time = info.next_if(GENERALIZED_TIME)?.content;
        // Accuracy, ordering, nonce, name and extensions say nothing that is asked for; ordering is the only of its kind.
        info.next_if(SEQUENCE);
        info.next_if(BOOLEAN);
        Some(Self {
            algorithm,
            digest,
            at: seconds(time)?,
        })
    }
}

/// `20231114221320.5Z` as seconds of Unix time; parts of a second are cut.
fn seconds(time: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(time).ok()?.strip_suffix('Z')?;
    let whole = text.split('.').next()?;
    if whole.len() != 14 || !whole.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let part = |from: usize, to: usize| whole.get(from..to).unwrap_or_default();
    let (date, clock) = (
        format!("{}-{}-{}", part(0, 4), part(4, 6), part(6, 8)),
        format!("{}:{}:{}", part(8, 10), part(10, 12), part(12, 14)),
    );
    let at: jiff::Timestamp = format!("{date}T{clock}Z").parse().ok()?;
    u64::try_from(at.as_second()).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A response for `signature` at this GeneralizedTime, with the certificate within, signed by `sign`.
    pub fn response(signature: &[u8], time: &str, certificate: &[u8], sign: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
        let all = |tag: u8, parts: &[Vec<u8>]| encode(tag, &parts.concat());
        let id = |oid: &[u8]| encode(OBJECT_ID, oid);
        let sha256 = [SHA2, &[1]].concat();
        let algorithm = all(SEQUENCE, &[id(&sha256), vec![5, 0]]);
        let imprint = all(
            SEQUENCE,
            &[algorithm.clone(), encode(OCTET_STRING, &Sha256::digest(signature))],
        );
        let parts = [
            encode(INTEGER, &[1]),
            id(&[0x2a, 3]),
            imprint,
            encode(INTEGER, &[7]),
            encode(GENERALIZED_TIME, time.as_bytes()),
        ];
        let info = all(SEQUENCE, &parts);
        let attribute = |name: &[u8], value: Vec<u8>| all(SEQUENCE, &[id(name), encode(SET, &value)]);
        let attributes = [
            attribute(CONTENT_TYPE, id(TST_INFO)),
            attribute(MESSAGE_DIGEST, encode(OCTET_STRING, &Sha256::digest(&info))),
        ]
        .concat();
        let signer = [
            encode(INTEGER, &[1]),
            encode(SEQUENCE, &[]),
            algorithm.clone(),
            encode(FIRST, &attributes),
            all(SEQUENCE, &[id(&[0x2a])]),
            encode(OCTET_STRING, &sign(&encode(SET, &attributes))),
        ];
        let signed = [
            encode(INTEGER, &[3]),
            encode(SET, &algorithm),
            all(SEQUENCE, &[id(TST_INFO), encode(FIRST, &encode(OCTET_STRING, &info))]),
            encode(FIRST, certificate),
            encode(SET, &all(SEQUENCE, &signer)),
        ];
        let message = all(SEQUENCE, &[id(SIGNED_DATA), encode(FIRST, &all(SEQUENCE, &signed))]);
        all(SEQUENCE, &[encode(SEQUENCE, &encode(INTEGER, &[0])), message])
    }

    #[test]
    fn times_are_read_and_others_are_not() {
        assert_eq!(seconds(b"20231114221320Z"), Some(1_700_000_000));
        assert_eq!(seconds(b"20231114221320.999Z"), Some(1_700_000_000));
        for wrong in [
            "20231114221320",
            "231114221320Z",
            "20231314221320Z",
            "2023111422132xZ",
            "",
            "Z",
        ] {
            assert_eq!(seconds(wrong.as_bytes()), None, "{wrong}");
        }
    }

    /// What OpenSSL's own authority makes is believed, by the file's authority and no other, for its signature and no other.
    #[test]
    fn what_openssl_has_stamped_is_read() {
        let directory = std::env::temp_dir().join(format!("wharf-stamp-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("signature"), b"a signature").unwrap();
        std::fs::write(
            directory.join("ts.cnf"),
            "[v3]\nextendedKeyUsage = critical,timeStamping\nbasicConstraints = CA:FALSE\n[ca]\nbasicConstraints = critical,CA:TRUE\n\
             [tsa]\ndefault_tsa = one\n[one]\nserial = ./serial\ndefault_policy = 1.2.3\ndigests = sha256, sha512\naccuracy = secs:1\n\
             ordering = yes\ntsa_name = yes\ness_cert_id_alg = sha256\nsigner_digest = sha256\n[req]\ndistinguished_name = dn\n[dn]\n",
        )
        .unwrap();
        let script = "set -e
            echo 01 > serial
            for name in ca tsa other; do openssl ecparam -name prime256v1 -genkey -noout -out $name.key; done
            for name in ca other; do
                openssl req -config ts.cnf -x509 -new -key $name.key -subj /CN=$name -days 2 -extensions ca -out $name.pem
            done
            openssl req -config ts.cnf -new -key tsa.key -subj /CN=tsa -out tsa.csr
            openssl x509 -req -in tsa.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ts.cnf -extensions v3 -out tsa.pem
            for certificate in -cert -no_nonce; do
                openssl ts -query -data signature -sha512 $certificate -out query
                openssl ts -reply -config ts.cnf -queryfile query -signer tsa.pem -inkey tsa.key -out reply$certificate
            done
            for name in ca tsa other; do openssl x509 -in $name.pem -outform DER -out $name.der; done";
        let run = std::process::Command::new("sh")
            .args(["-c", script])
            .current_dir(&directory)
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let read = |name: &str| std::fs::read(directory.join(name)).unwrap();
        let authority = |names: &[&str]| Authority::always(names.iter().map(|name| read(name).into()).collect());
        let with = read("reply-cert");
        let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap();
        for trusted in [&["ca.der"][..], &["tsa.der", "ca.der"]] {
            let at = check(&with, b"a signature", &[authority(trusted)]).unwrap();
            assert!(at <= now && now - at < 600, "{at} of {now}");
        }
        // Without its certificate within, the file must have it.
        let without = read("reply-no_nonce");
        check(&without, b"a signature", &[authority(&["tsa.der", "ca.der"])]).unwrap();
        for (response, signature, trusted, reason) in [
            (&without, &b"a signature"[..], &["ca.der"][..], "no authority"),
            (&with, b"another", &["ca.der"], "something else"),
            (&with, b"a signature", &["other.der"], "certificate of its timestamp"),
            (&with, b"a signature", &[], "certificate of its timestamp"),
        ] {
            let error = check(response, signature, &[authority(trusted)]).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let mut damaged = 0;
        for at in 0..with.len() {
            let mut other = with.clone();
            other[at] ^= 1;
            damaged += usize::from(check(&other, b"a signature", &[authority(&["ca.der"])]).is_err());
            assert!(check(&with[..at], b"a signature", &[authority(&["ca.der"])]).is_err());
        }
        // Not signed: the status, versions, who has signed, and what stands behind the signature.
        assert!(damaged > with.len() * 3 / 4, "{damaged} of {}", with.len());
        std::fs::remove_dir_all(directory).unwrap();
    }
}
