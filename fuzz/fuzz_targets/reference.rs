//! A reference, as people, kubelet and clients write it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(reference) = wharf::images::Reference::parse(text) {
        let again = wharf::images::Reference::parse(&reference.name());
        assert!(again.is_ok(), "a parsed name can't be read again: {text:?}");
        let _ = (reference.tagged(), reference.selector().len());
    }
});
