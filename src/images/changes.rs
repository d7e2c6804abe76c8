//! Dockerfile instructions that change an image's configuration (`--change` of import and commit).

use serde_json::{Map, Value, json};

/// Applies `instruction` to `config`, the inner object of an image configuration.
///
/// # Errors
/// What is wrong with the instruction.
pub(super) fn apply(config: &mut Map<String, Value>, instruction: &str) -> Result<(), String> {
    let text = instruction.trim();
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim();
    let name = word.to_ascii_uppercase();
    if rest.is_empty() {
        return Err(format!("{instruction:?} is no instruction with an argument"));
    }
    match name.as_str() {
        "CMD" => {
            config.insert("Cmd".into(), json!(command(rest)?));
        }
        "ENTRYPOINT" => {
            config.insert("Entrypoint".into(), json!(command(rest)?));
        }
        "USER" => {
            config.insert("User".into(), json!(single(rest)?));
        }
        "WORKDIR" => {
            let path = single(rest)?;
            let path = if path.starts_with('/') {
                path
            } else {
                let now = config.get("WorkingDir").and_then(Value::as_str).unwrap_or_default();
                format!("{}/{path}", now.trim_end_matches('/'))
            };
            config.insert("WorkingDir".into(), json!(path));
        }
        "STOPSIGNAL" => {
            config.insert("StopSignal".into(), json!(single(rest)?));
        }
        "ENV" => {
            for (key, value) in pairs(rest)? {
                set_env(config, &key, &value);
            }
        }
        "LABEL" => {
            let labels = object(config, "Labels");
            for (key, value) in pairs(rest)? {
                labels.insert(key, json!(value));
            }
        }
        "EXPOSE" => {
            let ports = object(config, "ExposedPorts");
            for port in words(rest)? {
                ports.insert(expose(&port)?, json!({}));
            }
        }
        "VOLUME" => {
            let paths = if rest.starts_with('[') {
                list(rest)?
            } else {
                words(rest)?
            };
            let volumes = object(config, "Volumes");
            for path in paths {
                volumes.insert(path, json!({}));
            }
        }
        _ => {
            return Err(format!(
                "{name} is not an instruction that can change an image's configuration here"
            ));
        }
    }
    Ok(())
}

/// Sets a variable in `Env`.
pub(super) fn set_env(config: &mut Map<String, Value>, key: &str, value: &str) {
    let all = config.entry("Env").or_insert_with(|| json!([]));
    if !all.is_array() {
        *all = json!([]);
    }
    if let Some(all) = all.as_array_mut() {
        let text = json!(format!("{key}={value}"));
        let is_it = |entry: &&mut Value| entry.as_str().and_then(|entry| entry.split('=').next()) == Some(key);
        match all.iter_mut().find(is_it) {
            Some(entry) => *entry = text,
            None => all.push(text),
        }
    }
}

fn object<'a>(config: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = config.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(map) => map,
        // It was made one just now.
        _ => unreachable!("an object"),
    }
}

/// The JSON form, or a line for the shell.
fn command(text: &str) -> Result<Vec<String>, String> {
    if text.starts_with('[')
        && let Ok(words) = list(text)
    {
        return Ok(words);
    }
    Ok(vec!["/bin/sh".into(), "-c".into(), text.into()])
}

fn list(text: &str) -> Result<Vec<String>, String> {
    serde_json::from_str(text).map_err(|_| format!("{text} is not a JSON list of strings"))
}

fn single(text: &str) -> Result<String, String> {
    match <[String; 1]>::try_from(words(text)?) {
        Ok([word]) => Ok(word),
        Err(_) => Err(format!("{text:?} is more than one word")),
    }
}

/// `KEY=VALUE ...`, or `KEY VALUE` in the old form.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let words = words(text)?;
    let bad = || format!("{text:?} is not KEY=VALUE");
    if !words.first().is_some_and(|word| word.contains('=')) {
        let (key, value) = text.split_once(char::is_whitespace).ok_or_else(bad)?;
        return Ok(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: String| {
        let (key, value) = word
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(bad)?;
        Ok((key.to_owned(), value.to_owned()))
    };
    words.into_iter().map(pair).collect()
}

/// Words as a shell reads them: quotes and backslashes.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(mark), _) if character == mark => quote = None,
            (None, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => {
                let next = characters
                    .next()
                    .ok_or_else(|| format!("{text:?} ends in a backslash"))?;
                word.get_or_insert_default().push(next);
            }
            (None, _) if character.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    if quote.is_some() {
        return Err(format!("a quote in {text:?} is not closed"));
    }
    words.extend(word);
    Ok(words)
}

/// `PORT[/PROTOCOL]`, as images write it.
fn expose(text: &str) -> Result<String, String> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if port.parse::<u16>().is_ok_and(|port| port > 0) && matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Ok(format!("{port}/{protocol}"));
    }
    Err(format!("{text:?} is not PORT[/PROTOCOL]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(all: &[&str]) -> Result<Value, String> {
        let mut config = Map::new();
        config.insert("Env".into(), json!(["PATH=/bin", "A=old"]));
        config.insert("Labels".into(), Value::Null);
        for instruction in all {
            apply(&mut config, instruction)?;
        }
        Ok(Value::Object(config))
    }

    #[test]
    fn instructions_change_what_dockerfiles_change() {
        let config = changed(&[
            "CMD [\"a\", \"b c\"]",
            "entrypoint echo $X",
            "ENV A=1 B=\"two words\" C=x\\ y",
            "ENV D the rest",
            "LABEL \"k.e/y\"='v'",
            "EXPOSE 80 53/udp",
            "VOLUME [\"/a\"]",
            "VOLUME /b /c",
            "USER 1000:1000",
            "WORKDIR /srv",
            "WORKDIR sub",
            "STOPSIGNAL SIGINT",
        ])
        .unwrap();
        assert_eq!(
            config,
            json!({
                "Cmd": ["a", "b c"], "Entrypoint": ["/bin/sh", "-c", "echo $X"],
                "Env": ["PATH=/bin", "A=1", "B=two words", "C=x y", "D=the rest"],
                "Labels": {"k.e/y": "v"}, "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
                "Volumes": {"/a": {}, "/b": {}, "/c": {}}, "User": "1000:1000",
                "WorkingDir": "/srv/sub", "StopSignal": "SIGINT",
            })
        );
    }

    #[test]
    fn what_is_no_such_instruction_is_refused() {
        for (instruction, reason) in [
            ("", "no instruction"),
            ("CMD", "no instruction"),
            ("RUN make", "RUN is not"),
            ("ENV A", "not KEY=VALUE"),
            ("ENV =x", "not KEY=VALUE"),
            ("EXPOSE 0", "not PORT"),
            ("EXPOSE 80/icmp", "not PORT"),
            ("LABEL a=\"b", "not closed"),
            ("USER a b", "more than one word"),
        ] {
            let error = changed(&[instruction]).unwrap_err();
            assert!(error.contains(reason), "{instruction:?}: {error}");
        }
    }
}
