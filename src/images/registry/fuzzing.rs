//! Doors for the fuzz targets (fuzz/).

use std::path::Path;

use http::{
    HeaderMap, HeaderValue,
    header::{CONTENT_RANGE, RETRY_AFTER, WWW_AUTHENTICATE},
};

use super::{ahead, challenge, conf::Conf, hosts, session};

/// Headers of a registry's answers, one a line.
pub fn headers(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            for name in [WWW_AUTHENTICATE, CONTENT_RANGE, RETRY_AFTER] {
                headers.append(name, value.clone());
            }
        }
    }
    let _ = challenge::best(&headers);
    let _ = ahead::bounds(&headers);
    let _ = session::retry_after(&headers);
}

/// A `hosts.toml`.
pub fn hosts(text: &str) {
    let _ = hosts::parse(text, Path::new("/fuzz"));
}

/// A `registries.conf`, and a name that it may rewrite.
pub fn conf(text: &str, name: &str) {
    let mut conf = Conf::default();
    if conf.add(text).is_ok() {
        let names = conf
            .expand(name)
            .ok()
            .flatten()
            .unwrap_or_else(|| vec![name.to_owned()]);
        for name in names {
            let _ = conf.places(&name);
        }
    }
}
