//! A door for the fuzz target (fuzz/).

use std::sync::Arc;

use oci_spec::runtime::Spec;

use super::{
    apply,
    catalog::{Found, Source},
    edits, format,
};

/// A spec file; all its devices are given to a container.
pub fn file(text: &str, yaml: bool) {
    let Ok(file) = format::parse(text, yaml) else { return };
    let source = Arc::new(Source {
        path: "fuzz".into(),
        file,
    });
    let devices = source.file.devices.iter().enumerate().map(|(at, device)| Found {
        name: device.name.clone(),
        source: Arc::clone(&source),
        at,
    });
    if let Ok(injection) = edits::collect(devices.collect()) {
        apply(&injection, &mut Spec::default());
    }
}
