//! Certificates of those who sign with keys that are good for minutes, as Fulcio makes them.

use std::time::Duration;

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime, pem::PemObject as _};

use super::{
    der::{BOOLEAN, EXTENSIONS, Element, OBJECT_ID, OCTET_STRING, Reader, SEQUENCE, UTF8_STRING, VERSION},
    key::{Material, PublicKey, algorithms},
    roots::Trusted,
    sct,
};

const MALFORMED: &str = "its certificate is malformed";

/// id-kp-codeSigning, 1.3.6.1.5.5.7.3.3.
const CODE_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 3];
/// extKeyUsage, 2.5.29.37.
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 37];
/// subjectAltName, 2.5.29.17.
const ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 17];
/// 1.3.6.1.4.1.57264.1.1: who has vouched for the name, as plain bytes. Fulcio has deprecated it for the next one.
const ISSUER_PLAIN: &[u8] = &[0x2b, 6, 1, 4, 1, 0x83, 0xbf, 0x30, 1, 1];
/// 1.3.6.1.4.1.57264.1.8: the same as a UTF8String.
const ISSUER: &[u8] = &[0x2b, 6, 1, 4, 1, 0x83, 0xbf, 0x30, 1, 8];
/// Tags of GeneralName: rfc822Name and uniformResourceIdentifier.
const EMAIL: u8 = 0x81;
const URI: u8 = 0x86;

/// What a certificate says, which counts only when its chain has been checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub key: PublicKey,
    /// E-mail addresses and URLs of who has the key.
    pub identities: Vec<String>,
    /// Who has vouched for them.
    pub issuer: Option<String>,
}

/// The certificates in `material`, at least one. Blocking.
///
/// # Errors
/// A sentence about the file.
pub(super) fn read(material: &Material) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = material.read()?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match all {
        Err(error) => Err(format!("{}: {error}", material.name())),
        Ok(all) if all.is_empty() => Err(format!("{} has no certificate", material.name())),
        Ok(all) => Ok(all),
    }
}

/// Checks that `chain` (its first is whose key has signed) leads to one of the authorities, and was good `at` that second of Unix
/// time; and that a log of certificates has it, where there are such.
///
/// # Errors
/// What is wrong, in a few words.
pub(super) fn check(chain: &[Vec<u8>], trusted: &Trusted, at: u64) -> Result<(), String> {
    let Some((first, rest)) = chain.split_first() else {
        return Err("it has no certificate".into());
    };
    let roots = trusted
        .authorities
        .iter()
        .filter(|authority| authority.is_good_at(at))
        .flat_map(|one| &one.chain);
    let between: Vec<CertificateDer<'_>> = rest.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    leads(first, &between, roots.clone(), CODE_SIGNING, at)?;
    if trusted.certificate_logs.is_empty() {
        return Ok(());
    }
    let issuers: Vec<&[u8]> = rest.iter().map(Vec::as_slice).chain(roots.map(AsRef::as_ref)).collect();
    sct::check(first, &issuers, &trusted.certificate_logs)
}

/// Checks that the certificate `leaf` leads by way of `between` to one of `anchors`, and was good for `usage` at that second of
/// Unix time. That it says itself what it is for must be seen apart.
///
/// # Errors
/// What is wrong, in a few words.
pub(super) fn leads<'a>(
    leaf: &[u8],
    between: &[CertificateDer<'_>],
    anchors: impl Iterator<Item = &'a CertificateDer<'static>>,
    usage: &'static [u8],
    at: u64,
) -> Result<(), String> {
    let leaf = CertificateDer::from(leaf);
    let leaf = webpki::EndEntityCert::try_from(&leaf).map_err(|error| format!("its certificate: {error}"))?;
    let anchor = |one: &'a CertificateDer<'static>| webpki::anchor_from_trusted_cert(one);
    let anchors: Result<Vec<TrustAnchor<'_>>, _> = anchors.map(anchor).collect();
    let anchors = anchors.map_err(|error| format!("an authority's certificate: {error}"))?;
    leaf.verify_for_usage(
        algorithms(),
        &anchors,
        between,
        UnixTime::since_unix_epoch(Duration::from_secs(at)),
        webpki::KeyUsage::required_if_present(usage),
        None,
        None,
    )
    .map(drop)
    .map_err(|error| format!("its certificate was not good when it was made: {error}"))
}

/// Extensions by their object identifiers.
pub(super) type Extensions<'a> = Vec<(&'a [u8], Element<'a>)>;

/// Key and extensions of the certificate `der`.
///
/// # Errors
/// When it is malformed, or has a key of another kind.
pub(super) fn parts(der: &[u8]) -> Result<(PublicKey, Extensions<'_>), String> {
    let malformed = || MALFORMED.to_owned();
    let mut body = Reader::new(der)
        .next_if(SEQUENCE)
        .and_then(|whole| whole.inner().next_if(SEQUENCE))
        .ok_or_else(malformed)?
        .inner();
    body.next_if(VERSION);
    // Serial number, algorithm, issuer, validity, subject.
    for _ in 0..5 {
        body.next().ok_or_else(malformed)?;
    }
    let key = body.next_if(SEQUENCE).ok_or_else(malformed)?;
    let key = PublicKey::from_der(key.whole).ok_or("its certificate has a key of a kind that is not supported")?;
    let mut extensions = Vec::new();
    while let Some(element) = body.next() {
        if element.tag != EXTENSIONS {
            continue;
        }
        let mut list = element.inner().next_if(SEQUENCE).ok_or_else(malformed)?.inner();
        while let Some(extension) = list.next_if(SEQUENCE) {
            let mut parts = extension.inner();
            let name = parts.next_if(OBJECT_ID).ok_or_else(malformed)?.content;
            parts.next_if(BOOLEAN);
            extensions.push((name, parts.next_if(OCTET_STRING).ok_or_else(malformed)?));
        }
    }
    Ok((key, extensions))
}

/// Whether a certificate says that it is for `usage`.
pub(super) fn is_for(extensions: &Extensions<'_>, usage: &[u8]) -> bool {
    let lists = extensions.iter().filter(|(name, _)| *name == KEY_USAGE);
    lists
        .filter_map(|(_, value)| value.inner().next_if(SEQUENCE))
        .any(|list| {
            let mut list = list.inner();
            std::iter::from_fn(|| list.next_if(OBJECT_ID)).any(|one| one.content == usage)
        })
}

/// Reads what the certificate `der` says.
///
/// # Errors
/// When it is malformed, has a key of another kind, is not for signing code, or names two issuers.
pub(super) fn said(der: &[u8]) -> Result<Said, String> {
    let malformed = || MALFORMED.to_owned();
    let (key, extensions) = parts(der)?;
    let signs_code = is_for(&extensions, CODE_SIGNING);
    let mut said = Said {
        key,
        identities: Vec::new(),
        issuer: None,
    };
    let mut plain = None;
    for (name, value) in extensions {
        match name {
            ALTERNATIVE_NAME => said.identities.extend(names(value.inner()).ok_or_else(malformed)?),
            ISSUER => {
                let text = value.inner().next_if(UTF8_STRING).ok_or_else(malformed)?.content;
                said.issuer = Some(utf8(text).ok_or_else(malformed)?);
            }
            ISSUER_PLAIN => plain = Some(utf8(value.content).ok_or_else(malformed)?),
            _ => {}
        }
    }
    // Those between it and its authority need not say what they are for; it must.
    if !signs_code {
        return Err("its certificate is not for signing code".into());
    }
    match (&said.issuer, plain) {
        (Some(one), Some(other)) if *one != other => Err("its certificate names two issuers".into()),
        (None, plain) => {
            said.issuer = plain;
            Ok(said)
        }
        _ => Ok(said),
    }
}

fn names(mut value: Reader<'_>) -> Option<Vec<String>> {
    let mut list = value.next_if(SEQUENCE)?.inner();
    let mut found = Vec::new();
    while let Some(name) = list.next() {
        if matches!(name.tag, EMAIL | URI) {
            found.push(utf8(name.content)?);
        }
    }
    list.is_empty().then_some(found)
}

fn utf8(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}
