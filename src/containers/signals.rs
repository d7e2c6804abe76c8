//! Names of signals, as CRI, images and people write them.

use wharf_proto::cri;

/// The number of the signal called `name`: "SIGTERM", "term", "15" or "SIGRTMIN+3".
///
/// `None` when there is no such signal (signal(7)).
#[must_use]
pub fn number(name: &str) -> Option<i32> {
    let name = name.trim();
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    match full.as_str() {
        "SIGCLD" => return Some(libc::SIGCHLD),
        "SIGPOLL" => return Some(libc::SIGIO),
        "SIGIOT" => return Some(libc::SIGABRT),
        "SIGUNUSED" => return Some(libc::SIGSYS),
        _ => {}
    }
    // The kernel numbers real-time signals 32..64; libraries keep the first two for themselves and count from 34.
    let realtime = |base: i32, rest: &str| -> Option<i32> {
        let offset = if rest.is_empty() { 0 } else { rest.parse::<i32>().ok()? };
        let number = base + offset;
        (34..=64).contains(&number).then_some(number)
    };
    if let Some(rest) = full.strip_prefix("SIGRTMIN") {
        return realtime(34, rest.strip_prefix('+').unwrap_or(rest));
    }
    if let Some(rest) = full.strip_prefix("SIGRTMAX") {
        return realtime(64, rest);
    }
    full.parse::<nix::sys::signal::Signal>()
        .ok()
        .map(|signal| signal as i32)
}

/// The name of CRI's signal, as [`number`] takes it; `None` for the runtime's default.
#[must_use]
pub fn from_cri(signal: cri::Signal) -> Option<String> {
    if signal == cri::Signal::RuntimeDefault {
        return None;
    }
    let name = signal.as_str_name();
    let name = name.strip_prefix("SIGNAL_").unwrap_or(name);
    // Upstream spells SIGRTMIN+1 as SIGRTMINPLUS1 and SIGRTMAX-1 as SIGRTMAXMINUS1.
    Some(name.replace("PLUS", "+").replace("MINUS", "-"))
}

/// CRI's value for the signal called `name`; the default when CRI has none for it.
#[must_use]
pub fn to_cri(name: &str) -> cri::Signal {
    let Some(wanted) = number(name) else {
        return cri::Signal::RuntimeDefault;
    };
    // Values are dense and few; aliases of one number come later than the common name or are equal in meaning.
    (1..=128)
        .filter_map(|value| cri::Signal::try_from(value).ok())
        .find(|signal| from_cri(*signal).and_then(|name| number(&name)) == Some(wanted))
        .unwrap_or(cri::Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_real_time_signals_are_understood() {
        for (name, expected) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("SIGRTMAX-2", 62),
            ("SIGRTMAX", 64),
        ] {
            assert_eq!(number(name), Some(expected), "{name}");
        }
        for name in ["", "SIGNOPE", "0", "65", "SIGRTMIN+99", "-3"] {
            assert_eq!(number(name), None, "{name}");
        }
    }

    #[test]
    fn every_signal_of_cri_has_a_number_and_comes_back() {
        for value in 1..=65 {
            let signal = cri::Signal::try_from(value).expect("CRI names 65 signals");
            let name = from_cri(signal).expect("not the default");
            let wanted = number(&name).unwrap_or_else(|| panic!("{name} has no number"));
            let back = from_cri(to_cri(&name)).and_then(|name| number(&name));
            assert_eq!(back, Some(wanted), "{name}");
        }
    }
}
