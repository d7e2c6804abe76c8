//! Reads `WWW-Authenticate` headers (RFC 9110, section 11.6.1).

use http::{HeaderMap, header::WWW_AUTHENTICATE};

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::images) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The best challenge among `headers`: a token rather than a password.
pub(in crate::images) fn best(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(text) = value.to_str() else { continue };
        for challenge in parse(text) {
            match challenge {
                Challenge::Bearer { .. } => return Some(challenge),
                Challenge::Basic => basic = Some(challenge),
            }
        }
    }
    basic
}

/// All challenges in one header that have a known scheme.
fn parse(text: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let end = rest.find([' ', ',', '=']).unwrap_or(rest.len());
        let word = rest[..end].to_ascii_lowercase();
        rest = rest[end..].trim_start_matches(' ');
        if let Some(after) = rest.strip_prefix('=') {
            let (value, after) = value(after.trim_start_matches(' '));
            rest = after;
            if let Some((_, parameters)) = found.last_mut() {
                parameters.push((word, value));
            }
        } else if !word.is_empty() {
            found.push((word, Vec::new()));
        }
        rest = rest.trim_start_matches([' ', ',']);
    }
    found
        .into_iter()
        .filter_map(|(scheme, parameters)| {
            let get = |name: &str| {
                parameters
                    .iter()
                    .find(|(key, _)| key == name)
                    .map(|(_, value)| value.clone())
            };
            match scheme.as_str() {
                "basic" => Some(Challenge::Basic),
                "bearer" => Some(Challenge::Bearer {
                    realm: get("realm")?,
                    service: get("service"),
                    scope: get("scope"),
                }),
                _ => None,
            }
        })
        .collect()
}

/// A token or a quoted string at the head of `text`, and what follows it.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, character)| character)),
            _ => value.push(character),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_challenge_is_read_and_preferred() {
        let all = parse(
            r#"Basic realm="x, y", Bearer realm="https://a/t?x=1",service="s\"q", scope="repository:a/b:pull,push""#,
        );
        assert_eq!(all[0], Challenge::Basic);
        assert_eq!(
            all[1],
            Challenge::Bearer {
                realm: "https://a/t?x=1".into(),
                service: Some("s\"q".into()),
                scope: Some("repository:a/b:pull,push".into())
            }
        );
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "Basic realm=x".parse().unwrap());
        headers.append(WWW_AUTHENTICATE, "bearer realm=r".parse().unwrap());
        assert!(matches!(best(&headers), Some(Challenge::Bearer { realm, .. }) if realm == "r"));
    }

    #[test]
    fn nonsense_ends() {
        for text in [
            "",
            ",",
            "=",
            "Bearer",
            "Bearer realm",
            "Bearer realm=\"",
            "\"",
            "a=b",
            "Basic = = ,",
            "Bearer realm=\"\\",
            "é =\"é",
        ] {
            let _ = parse(text);
        }
        assert!(parse("Bearer service=x").is_empty());
    }
}
