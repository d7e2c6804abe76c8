//! Signatures by GPG ("simple signing", containers-signature(5)), which `gpgv` checks: a program of some hundred kilobytes that
//! every distribution has, and that knows no other keys than those it is given.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use super::{
    key::Material,
    log::decode,
    signature::{Claim, claims},
};
use crate::images::layers::Temporary;

const PROGRAM: &str = "gpgv";
/// The payload's `type`.
const ATOMIC: &str = "atomic container signature";
/// Bytes that what is signed may have, and what is said of it.
const MAX_PAYLOAD: u64 = 64 << 10;
const MAX_STATUS: u64 = 64 << 10;

/// Keys as gpgv wants them: OpenPGP's packets (RFC 9580), without the armour of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keys(Vec<u8>);

impl Keys {
    /// The keys in these files. Blocking.
    ///
    /// # Errors
    /// A sentence about a file.
    pub fn read(all: &[Material]) -> Result<Self, String> {
        let mut packets = Vec::new();
        for material in all {
            let bytes = material.read()?;
            let bare = dearmoured(&bytes).ok_or_else(|| format!("{} has damaged keys", material.name()))?;
            if bare.is_empty() {
                return Err(format!("{} has no keys", material.name()));
            }
            packets.extend(bare);
        }
        Ok(Self(packets))
    }

    /// What the signature says, if it is by one of the keys. `root` is the directory of the images room. Blocking.
    ///
    /// # Errors
    /// What is wrong, in a few words.
    pub fn check(&self, signature: &[u8], root: &Path) -> Result<Vec<Claim>, String> {
        let directory = Temporary::create(root).map_err(|error| error.to_string())?;
        let at = |name: &str| directory.path().join(name);
        let failed = |error: io::Error| format!("prepare {PROGRAM}: {error}");
        fs::write(at("keys"), &self.0).map_err(failed)?;
        fs::write(at("signature"), signature).map_err(failed)?;
        let said = File::create_new(at("said")).map_err(failed)?;
        let spawned = Command::new(PROGRAM)
            .args(["--quiet", "--status-fd", "2", "--output", "-", "--homedir"])
            .arg(directory.path())
            .arg("--keyring")
            .arg(at("keys"))
            .arg(at("signature"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(said)
            .spawn();
        let mut child = spawned.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!("signatures by GPG are checked by {PROGRAM}, which is not installed"),
            _ => format!("start {PROGRAM}: {error}"),
        })?;
        let mut payload = Vec::new();
        let read = match child.stdout.take() {
            Some(stdout) => stdout.take(MAX_PAYLOAD + 1).read_to_end(&mut payload).map(drop),
            None => Ok(()),
        };
        // What it would still write is of no use.
        if read.is_err() || payload.len() as u64 > MAX_PAYLOAD {
            let _ = child.kill();
        }
        let status = child.wait().map_err(|error| format!("wait for {PROGRAM}: {error}"))?;
        read.map_err(|error| format!("read from {PROGRAM}: {error}"))?;
        if payload.len() as u64 > MAX_PAYLOAD {
            return Err("what it signs is too large".into());
        }
        let mut text = Vec::new();
        let read = File::open(at("said")).and_then(|file| file.take(MAX_STATUS).read_to_end(&mut text));
        read.map_err(|error| format!("read what {PROGRAM} says: {error}"))?;
        judge(&String::from_utf8_lossy(&text))?;
        if !status.success() {
            return Err(format!("{PROGRAM} does not take it ({status})"));
        }
        claims(&payload, ATOMIC)
    }
}

/// Whether gpgv has found just one signature, and that good (doc/DETAILS of GnuPG, "Signature related status codes").
fn judge(said: &str) -> Result<(), String> {
    let words: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("[GNUPG:] ")?.split(' ').next())
        .collect();
    let count = |word: &str| words.iter().filter(|one| **one == word).count();
    for (word, reason) in [
        ("BADSIG", "it is damaged"),
        ("EXPSIG", "it has expired"),
        ("EXPKEYSIG", "its key has expired"),
        ("REVKEYSIG", "its key was revoked"),
        ("NO_PUBKEY", "it is not by a key that is trusted"),
        ("ERRSIG", "it can't be checked"),
    ] {
        if count(word) > 0 {
            return Err(reason.into());
        }
    }
    match (count("NEWSIG"), count("GOODSIG"), count("VALIDSIG")) {
        (1, 1, 1) => Ok(()),
        (0, ..) => Err("it is no signature".into()),
        _ => Err("it is not just one good signature".into()),
    }
}

/// The packets in armoured blocks (RFC 9580, section 6.2), or the bytes as they are if there is none.
fn dearmoured(bytes: &[u8]) -> Option<Vec<u8>> {
    const BEGIN: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
    const END: &str = "-----END PGP PUBLIC KEY BLOCK-----";
    let Ok(mut rest) = std::str::from_utf8(bytes) else {
        return Some(bytes.to_vec());
    };
    if !rest.contains(BEGIN) {
        return Some(bytes.to_vec());
    }
    let mut packets = Vec::new();
    while let Some((_, block)) = rest.split_once(BEGIN) {
        let (block, behind) = block.split_once(END)?;
        rest = behind;
        // Headers end with an empty line, the content with a checksum.
        let body = block
            .lines()
            .map(str::trim)
            .skip(1)
            .skip_while(|line| line.contains(": "));
        let text: String = body.take_while(|line| !line.starts_with('=')).collect();
        packets.write_all(&decode(&text)?).ok()?;
    }
    Some(packets)
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::*;

    #[test]
    fn armour_is_taken_off_and_what_has_none_stays() {
        let block = |bytes: &[u8]| {
            format!(
                "-----BEGIN PGP PUBLIC KEY BLOCK-----\nComment: x\n\n{}\n=AAAA\n-----END PGP PUBLIC KEY BLOCK-----\n",
                STANDARD.encode(bytes)
            )
        };
        assert_eq!(dearmoured(&[0x99, 1, 2]).unwrap(), [0x99, 1, 2]);
        let two = format!("{}text\n{}", block(b"one"), block(b"two").replace("Comment: x\n", ""));
        assert_eq!(dearmoured(two.as_bytes()).unwrap(), b"onetwo");
        assert!(dearmoured(block(b"one").replace("END", "EN").as_bytes()).is_none());
        assert!(dearmoured(block(b"one").replace("b25l", "%").as_bytes()).is_none());
    }

    #[test]
    fn only_one_good_signature_counts() {
        let good = "[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG A b\n[GNUPG:] VALIDSIG A\n";
        assert_eq!(judge(good), Ok(()));
        for (said, reason) in [
            ("", "no signature"),
            ("gpgv: [GNUPG:] GOODSIG", "no signature"),
            (
                "[GNUPG:] NEWSIG\n[GNUPG:] ERRSIG A\n[GNUPG:] NO_PUBKEY A\n",
                "not by a key",
            ),
            ("[GNUPG:] NEWSIG\n[GNUPG:] BADSIG A\n", "damaged"),
            ("[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG A\n", "not just one"),
            (&good.repeat(2), "not just one"),
            (&format!("{good}[GNUPG:] EXPKEYSIG A\n"), "key has expired"),
            (&format!("{good}[GNUPG:] NEWSIG\n[GNUPG:] REVKEYSIG A\n"), "revoked"),
        ] {
            assert!(judge(said).unwrap_err().contains(reason), "{said}");
        }
    }
}
