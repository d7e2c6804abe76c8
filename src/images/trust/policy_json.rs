//! `policy.json` as CRI-O, podman and skopeo read it, see containers-policy.json(5): what it says about images in registries.
//!
//! As there, a file with anything that is not known is refused whole: half a policy is worse than none.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::Deserialize;

use super::{
    key::Material,
    log::decode,
    policy::{By, NameRule, Pattern, Requirement, Scopes, Signed},
    roots::Roots,
};

/// The scopes of the transport `docker`, and what holds for all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PolicyJson {
    pub scopes: Scopes,
    /// Of the transport.
    pub transport: Option<Vec<Requirement>>,
    pub default: Vec<Requirement>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Vec<Item>,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<Item>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Item {
    #[serde(rename = "type")]
    kind: String,
    key_type: Option<String>,
    key_path: Option<String>,
    key_paths: Option<Vec<String>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    fulcio: Option<Fulcio>,
    pki: Option<serde_json::Value>,
    rekor_public_key_path: Option<String>,
    rekor_public_key_paths: Option<Vec<String>>,
    rekor_public_key_data: Option<String>,
    rekor_public_key_datas: Option<Vec<String>>,
    signed_identity: Option<SignedIdentity>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Fulcio {
    ca_path: Option<String>,
    ca_data: Option<String>,
    oidc_issuer: String,
    subject_email: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct SignedIdentity {
    #[serde(rename = "type")]
    kind: String,
    docker_reference: Option<String>,
    docker_repository: Option<String>,
    prefix: Option<String>,
    signed_prefix: Option<String>,
}

/// Reads `path`; absent is `None`. Blocking.
///
/// # Errors
/// A sentence about the file.
pub(super) fn read(path: &Path) -> Result<Option<PolicyJson>, String> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("read {}: {error}", path.display())),
    };
    parse(&bytes)
        .map(Some)
        .map_err(|reason| format!("{}: {reason}", path.display()))
}

fn parse(json: &[u8]) -> Result<PolicyJson, String> {
    let mut file: File = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let docker = file.transports.remove("docker").unwrap_or_default();
    let mut policy = PolicyJson {
        scopes: Scopes::default(),
        transport: None,
        default: requirements(file.default)?,
    };
    for (scope, items) in docker {
        let found = requirements(items).map_err(|reason| format!("scope {scope:?}: {reason}"))?;
        if scope.is_empty() {
            policy.transport = Some(found);
        } else {
            policy.scopes.0.insert(scope, found);
        }
    }
    Ok(policy)
}

fn requirements(items: Vec<Item>) -> Result<Vec<Requirement>, String> {
    if items.is_empty() {
        return Err("a list of requirements is empty".into());
    }
    items.into_iter().map(requirement).collect()
}

fn requirement(item: Item) -> Result<Requirement, String> {
    Ok(match item.kind.as_str() {
        "insecureAcceptAnything" => Requirement::Accept,
        "reject" => Requirement::Reject,
        "signedBy" => by_gpg(item)?,
        "sigstoreSigned" => signed(item)?,
        other => return Err(format!("requirement {other:?} is not known")),
    })
}

fn by_gpg(item: Item) -> Result<Requirement, String> {
    match item.key_type.as_deref() {
        Some("GPGKeys") => {}
        Some(other) => {
            return Ok(Requirement::Unsupported(format!(
                "wants keys of type {other:?} (signedBy)"
            )));
        }
        None => return Err("signedBy needs keyType".into()),
    }
    let rekor = [&item.rekor_public_key_path, &item.rekor_public_key_data];
    let more = [
        &item.rekor_public_key_paths,
        &item.rekor_public_key_datas,
        &item.key_datas,
    ];
    if item.fulcio.is_some()
        || item.pki.is_some()
        || rekor.iter().any(|one| one.is_some())
        || more.iter().any(|one| one.is_some())
    {
        return Err("signedBy has keyPath, keyPaths or keyData, and no others".into());
    }
    let keys = one_of("key", item.key_path, item.key_paths, item.key_data, None)?;
    Ok(Requirement::Signed(Signed {
        by: vec![By::Gpg(
            keys.ok_or("signedBy needs one of keyPath, keyPaths and keyData")?,
        )],
        name: item
            .signed_identity
            .map_or(Ok(NameRule::RepositoryIfDigest), name_rule)?,
    }))
}

fn signed(item: Item) -> Result<Requirement, String> {
    if item.pki.is_some() {
        return Ok(Requirement::Unsupported(
            "wants a certificate of a PKI of its own (pki)".into(),
        ));
    }
    if item.key_type.is_some() {
        return Err("keyType does not belong to sigstoreSigned".into());
    }
    let keys = one_of("key", item.key_path, item.key_paths, item.key_data, item.key_datas)?;
    let log = one_of(
        "rekorPublicKey",
        item.rekor_public_key_path,
        item.rekor_public_key_paths,
        item.rekor_public_key_data,
        item.rekor_public_key_datas,
    )?;
    let by = match (keys, item.fulcio) {
        (Some(keys), None) => By::Keys { keys, log },
        (None, Some(fulcio)) => By::Identity {
            roots: Roots::Files {
                authorities: one_of("ca", fulcio.ca_path, None, fulcio.ca_data, None)?
                    .and_then(|all| all.into_iter().next())
                    .ok_or("fulcio needs caPath or caData")?,
                logs: log.ok_or("fulcio needs rekorPublicKeyPath or rekorPublicKeyData")?,
                // There is no word for them in this file.
                certificate_logs: Vec::new(),
            },
            issuer: literal(&fulcio.oidc_issuer)?,
            identity: literal(&fulcio.subject_email)?,
        },
        _ => return Err("sigstoreSigned needs one of keyPath, keyPaths, keyData, keyDatas and fulcio".into()),
    };
    Ok(Requirement::Signed(Signed {
        by: vec![by],
        name: item
            .signed_identity
            .map_or(Ok(NameRule::RepositoryIfDigest), name_rule)?,
    }))
}

/// The one of four ways in which keys are given.
fn one_of(
    what: &str,
    path: Option<String>,
    paths: Option<Vec<String>>,
    data: Option<String>,
    datas: Option<Vec<String>>,
) -> Result<Option<Vec<Material>>, String> {
    let file = |path: String| Material::File(path.into());
    let bytes = |text: String| {
        decode(&text)
            .map(Material::Data)
            .ok_or_else(|| format!("{what}Data is not base64"))
    };
    let mut ways: Vec<Vec<Material>> = Vec::new();
    ways.extend(path.map(|path| vec![file(path)]));
    ways.extend(paths.map(|paths| paths.into_iter().map(file).collect()));
    ways.extend(data.map(|data| Ok::<_, String>(vec![bytes(data)?])).transpose()?);
    ways.extend(
        datas
            .map(|datas| datas.into_iter().map(bytes).collect::<Result<Vec<_>, _>>())
            .transpose()?,
    );
    match (ways.pop(), ways.is_empty()) {
        (None, _) => Ok(None),
        (Some(only), true) if !only.is_empty() => Ok(Some(only)),
        _ => Err(format!(
            "{what}Path, {what}Paths, {what}Data and {what}Datas: just one is allowed, and not empty"
        )),
    }
}

/// Names there are taken as they are.
fn literal(text: &str) -> Result<Pattern, String> {
    if text.is_empty() || text.contains('*') {
        return Err(format!("{text:?} is neither an issuer nor an address"));
    }
    Ok(Pattern(text.to_owned()))
}

fn name_rule(rule: SignedIdentity) -> Result<NameRule, String> {
    let missing = |field: &str| format!("signedIdentity {:?} needs {field}", rule.kind);
    Ok(match rule.kind.as_str() {
        "matchExact" => NameRule::Exact,
        "matchRepoDigestOrExact" => NameRule::RepositoryIfDigest,
        "matchRepository" => NameRule::Repository,
        "exactReference" => NameRule::ExactReference(
            rule.docker_reference
                .clone()
                .ok_or_else(|| missing("dockerReference"))?,
        ),
        "exactRepository" => NameRule::ExactRepository(
            rule.docker_repository
                .clone()
                .ok_or_else(|| missing("dockerRepository"))?,
        ),
        "remapIdentity" => NameRule::Remap {
            prefix: rule.prefix.clone().ok_or_else(|| missing("prefix"))?,
            signed_prefix: rule.signed_prefix.clone().ok_or_else(|| missing("signedPrefix"))?,
        },
        other => return Err(format!("signedIdentity {other:?} is not known")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_file_accepts_all() {
        let policy = parse(br#"{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker-daemon":{"":[{"type":"insecureAcceptAnything"}]}}}"#).unwrap();
        assert_eq!(policy.default, [Requirement::Accept]);
        assert!(policy.transport.is_none() && policy.scopes.0.is_empty());
    }

    #[test]
    fn requirements_are_read_and_those_that_can_not_be_met_are_kept_as_such() {
        let policy = parse(
            br#"{"default":[{"type":"reject"}],"transports":{"docker":{
                "":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}],
                "r.example/a":[{"type":"sigstoreSigned","keyPath":"/k.pub","signedIdentity":{"type":"matchRepository"}}],
                "r.example/b":[{"type":"sigstoreSigned","fulcio":{"caData":"YQ==","oidcIssuer":"https://i","subjectEmail":"a@b"},
                    "rekorPublicKeyPaths":["/r.pub"]}]}}}"#,
        )
        .unwrap();
        assert_eq!(policy.default, [Requirement::Reject]);
        assert_eq!(
            policy.transport.unwrap(),
            [Requirement::Signed(Signed {
                by: vec![By::Gpg(vec![Material::File("/k".into())])],
                name: NameRule::RepositoryIfDigest,
            })]
        );
        let x509 = parse(br#"{"default":[{"type":"signedBy","keyType":"X509Certificates","keyPath":"/k"}]}"#).unwrap();
        assert!(matches!(&x509.default[..], [Requirement::Unsupported(what)] if what.contains("X509Certificates")));
        assert_eq!(
            policy.scopes.0["r.example/a"],
            [Requirement::Signed(Signed {
                by: vec![By::Keys {
                    keys: vec![Material::File("/k.pub".into())],
                    log: None
                }],
                name: NameRule::Repository,
            })]
        );
        let Requirement::Signed(keyless) = &policy.scopes.0["r.example/b"][0] else {
            panic!("not signed")
        };
        assert_eq!(keyless.name, NameRule::RepositoryIfDigest);
        let By::Identity {
            roots: Roots::Files { authorities, .. },
            ..
        } = &keyless.by[0]
        else {
            panic!("{keyless:?}")
        };
        assert_eq!(*authorities, Material::Data(b"a".to_vec()));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (json, reason) in [
            ("[]", "invalid"),
            (r#"{"transports":{}}"#, "default"),
            (r#"{"default":[]}"#, "empty"),
            (r#"{"default":[{"type":"accept"}]}"#, "not known"),
            (r#"{"default":[{"type":"reject"}],"more":1}"#, "unknown field"),
            (r#"{"default":[{"type":"reject","keypath":"/k"}]}"#, "unknown field"),
            (r#"{"default":[{"type":"signedBy","keyPath":"/k"}]}"#, "keyType"),
            (
                r#"{"default":[{"type":"signedBy","keyType":"GPGKeys"}]}"#,
                "needs one of",
            ),
            (
                r#"{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","rekorPublicKeyPath":"/r"}]}"#,
                "no others",
            ),
            (r#"{"default":[{"type":"sigstoreSigned"}]}"#, "needs one of"),
            (
                r#"{"default":[{"type":"sigstoreSigned","keyPath":"/a","keyData":"YQ=="}]}"#,
                "just one",
            ),
            (r#"{"default":[{"type":"sigstoreSigned","keyPaths":[]}]}"#, "not empty"),
            (r#"{"default":[{"type":"sigstoreSigned","keyData":"%"}]}"#, "base64"),
            (
                r#"{"default":[{"type":"sigstoreSigned","fulcio":{"caPath":"/c","oidcIssuer":"i","subjectEmail":"e"}}]}"#,
                "rekorPublicKey",
            ),
            (
                r#"{"default":[{"type":"sigstoreSigned","keyPath":"/a","signedIdentity":{"type":"matchSome"}}]}"#,
                "not known",
            ),
            (
                r#"{"default":[{"type":"sigstoreSigned","keyPath":"/a","signedIdentity":{"type":"remapIdentity","prefix":"a"}}]}"#,
                "signedPrefix",
            ),
        ] {
            let error = parse(json.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{json}: {error}");
        }
    }
}
