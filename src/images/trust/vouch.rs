//! Whether an image that is here may be used.

use std::sync::Arc;

use super::{
    super::{Error, Image, Images, Reference, Result, pull::blocking, registry::Document, room::Room},
    Evidence, Rules, meets,
    policy::Requirement,
};

impl Images {
    /// Says whether `image`, which was asked for as `asked` (a name, or an id), may be mounted. It may if one of its names, or the
    /// one that was asked for, meets what is required of it by the signatures that came with the image; programs are asked unless they have
    /// taken it before. Reads files only.
    ///
    /// # Errors
    /// [`Error::Untrusted`]; others when files of the image can't be read.
    pub async fn vouch(&self, image: &Image, asked: &str) -> Result<()> {
        let room = self.room.clone();
        let names = names(&room, image, asked);
        let refused = |what: &str, reason: String| Error::Untrusted {
            what: what.to_owned(),
            reason,
        };
        let shown = names.first().map_or_else(|| image.id.clone(), ToString::to_string);
        let (owner, id) = (room.clone(), image.id.clone());
        let judged = blocking(move || {
            let rules = owner.trust.rules();
            Ok(match rules {
                Ok(rules) => Ok(judge(&owner, rules, &id, names)?),
                Err(reason) => Err(reason),
            })
        })
        .await?
        .map_err(|reason| refused(&shown, reason))?;
        let Some(Judged {
            rules,
            evidence,
            mut verdicts,
        }) = judged
        else {
            return Ok(());
        };
        let mut last = None;
        verdicts.retain(|(name, verdict)| match verdict {
            Ok(()) => true,
            Err(reason) => {
                let what = name.as_ref().map_or_else(|| image.id.clone(), ToString::to_string);
                last.get_or_insert_with(|| refused(&what, format!("{reason}; pull it again if that has changed")));
                false
            }
        });
        for (name, _) in verdicts {
            if rules.verifiers.is_empty() {
                return Ok(());
            }
            let shown = name.as_ref().map_or_else(|| image.id.clone(), ToString::to_string);
            let document = document(&room, image, name.as_ref()).await?;
            if evidence.was_taken(&shown, &document.digest, &rules.verifiers.fingerprint) {
                return Ok(());
            }
            match room.trust.ask(&rules.verifiers, &shown, &document).await {
                Err(reason) => last = Some(refused(&shown, reason)),
                Ok(judgement) => {
                    let taken = Evidence {
                        judgements: vec![judgement],
                        ..Evidence::default()
                    };
                    let (owner, id) = (room.clone(), image.id.clone());
                    return blocking(move || owner.index.keep_evidence(&id, taken)).await;
                }
            }
        }
        Err(last.unwrap_or_else(|| refused(&shown, "nobody vouches for it".into())))
    }
}

/// What the policy says of an image under its names.
struct Judged {
    rules: Rules,
    evidence: Evidence,
    verdicts: Vec<(Option<Reference>, std::result::Result<(), String>)>,
}

/// Judges the image `id`; `None` if nothing is asked of it. Blocking.
fn judge(room: &Arc<Room>, rules: Rules, id: &str, names: Vec<Reference>) -> Result<Option<Judged>> {
    let policy = rules.policy.as_ref();
    let mut names: Vec<Option<Reference>> = names.into_iter().map(Some).collect();
    if names.is_empty() {
        names.push(None);
    }
    let required: Vec<_> = names
        .iter()
        .map(|name| room.trust.requirements(policy, name.as_ref()))
        .collect();
    let free = |wanted: &[Requirement]| wanted.iter().all(|one| *one == Requirement::Accept);
    if rules.verifiers.is_empty() && required.iter().any(|(_, wanted)| free(wanted)) {
        return Ok(None);
    }
    let evidence = room.index.evidence(id)?;
    let verdicts = names
        .into_iter()
        .zip(required)
        .map(|(name, (place, wanted))| {
            let verdict = meets(&wanted, name.as_ref(), &evidence, &room.trust.root);
            (name, verdict.map_err(|reason| format!("{reason} ({place})")))
        })
        .collect();
    Ok(Some(Judged {
        rules,
        evidence,
        verdicts,
    }))
}

/// The name of `image` that `asked` means; if it means none of them, all that it has.
fn names(room: &Room, image: &Image, asked: &str) -> Vec<Reference> {
    let mut wanted = room.client.known_names(asked);
    wanted.push(asked.to_owned());
    let has = |reference: &Reference| match (&reference.digest, reference.tagged()) {
        (Some(digest), _) => image.digests.contains(&format!("{}@{digest}", reference.name())),
        (None, Some(tagged)) => image.tags.contains(&tagged),
        (None, None) => false,
    };
    let meant = wanted.iter().filter_map(|name| Reference::parse(name).ok()).find(has);
    match meant {
        Some(meant) => vec![meant],
        None => {
            let all = image.tags.iter().chain(&image.digests);
            all.filter_map(|name| Reference::parse(name).ok()).collect()
        }
    }
}

/// What `name` led to, as far as it is kept; else the image's manifest.
async fn document(room: &Arc<Room>, image: &Image, name: Option<&Reference>) -> Result<Document> {
    let digest = name.and_then(|name| {
        let repository = format!("{}@", name.name());
        let known = || image.digests.iter().find_map(|known| known.strip_prefix(&repository));
        name.digest.as_deref().or_else(known).map(ToOwned::to_owned)
    });
    let (owner, id) = (room.clone(), image.id.clone());
    blocking(move || {
        let kept = match &digest {
            Some(digest) => owner.index.document(&id, digest)?,
            None => owner.index.manifest(&id)?,
        };
        Ok(kept.unwrap_or_else(|| Document {
            bytes: bytes::Bytes::new(),
            digest: digest.unwrap_or(id),
            media_type: super::super::manifest::OCI_MANIFEST.into(),
        }))
    })
    .await
}
