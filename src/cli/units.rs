//! Ages, sizes, durations and ids as people read and write them.

use std::time::Duration;

use jiff::Timestamp;

/// Length of an id in a table.
pub const SHORT_ID: usize = 13;

/// The first characters of an id, without the name of its hash.
pub fn short_id(id: &str) -> &str {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.get(..SHORT_ID).unwrap_or(id)
}

/// Time since `nanos` (Unix time), for example "3 minutes ago"; empty for 0, which CRI uses for "never".
pub fn age(nanos: i64) -> String {
    if nanos <= 0 {
        return String::new();
    }
    let seconds = (Timestamp::now().as_nanosecond() - i128::from(nanos)) / 1_000_000_000;
    ago(i64::try_from(seconds).unwrap_or(i64::MAX))
}

/// "3 minutes ago" from seconds; a time in the future (another clock) counts as now.
pub fn ago(seconds: i64) -> String {
    const STEPS: [(i64, i64, &str); 6] = [
        (120, 60, "minute"),
        (60 * 60, 60, "minute"),
        (48 * 3600, 3600, "hour"),
        (14 * 86400, 86400, "day"),
        (60 * 86400, 7 * 86400, "week"),
        (730 * 86400, 30 * 86400, "month"),
    ];
    if seconds < 60 {
        return match seconds {
            ..=0 => "just now".to_owned(),
            1 => "1 second ago".to_owned(),
            _ => format!("{seconds} seconds ago"),
        };
    }
    for (below, unit, name) in STEPS {
        if seconds < below {
            return counted(seconds / unit, name);
        }
    }
    counted(seconds / (365 * 86400), "year")
}

fn counted(count: i64, name: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {name}{plural} ago")
}

/// A part of a whole that is not complete: never "100 %".
pub fn percent(part: u64, whole: u64) -> String {
    let share = u128::from(part) * 100 / u128::from(whole.max(1));
    format!("{} %", share.min(99))
}

/// Bytes in powers of 1000 with three digits, as `docker images` shows them: "4.27MB".
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if value < 999.5 || unit == "TB" {
            return match unit {
                "B" => format!("{bytes}B"),
                _ if value < 9.995 => format!("{value:.2}{unit}"),
                _ if value < 99.95 => format!("{value:.1}{unit}"),
                _ => format!("{value:.0}{unit}"),
            };
        }
        value /= 1000.0;
    }
    format!("{bytes}B")
}

/// RFC 3339 of Unix nanoseconds; empty for 0.
pub fn rfc3339(nanos: i64) -> String {
    if nanos == 0 {
        return String::new();
    }
    Timestamp::from_nanosecond(i128::from(nanos)).map_or_else(|_| nanos.to_string(), |time| time.to_string())
}

/// Reads `90`, `90s`, `5m`, `1h30m`, `250ms`; a bare number is seconds.
///
/// # Errors
/// When the text is no duration; the text names what would be one.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is no duration such as 90s, 5m or 1h30m");
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let count: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            "d" => Duration::from_secs(86400),
            _ => return Err(wrong()),
        };
        let part = u32::try_from(count)
            .ok()
            .and_then(|count| unit.checked_mul(count))
            .ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = &rest[letters..];
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// Reads a point in time: RFC 3339, or a duration before now.
///
/// # Errors
/// When the text is neither.
pub fn parse_since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let wrong = || format!("\"{text}\" is neither a time such as 2026-01-31T12:00:00Z nor a duration such as 10m");
    let before = parse_duration(text).map_err(|_| wrong())?;
    Timestamp::now().checked_sub(before).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_people_say_them() {
        let day = 86400;
        for (seconds, text) in [
            (-5, "just now"),
            (1, "1 second ago"),
            (59, "59 seconds ago"),
            (60, "1 minute ago"),
            (3599, "59 minutes ago"),
            (3600, "1 hour ago"),
            (47 * 3600, "47 hours ago"),
            (2 * day, "2 days ago"),
            (14 * day, "2 weeks ago"),
            (90 * day, "3 months ago"),
            (800 * day, "2 years ago"),
        ] {
            assert_eq!(ago(seconds), text);
        }
        assert_eq!(age(0), "");
    }

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (4_270_000, "4.27MB"),
            (77_800_000, "77.8MB"),
            (393_000_000, "393MB"),
            (999_900_000, "1.00GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["", "m", "5x", "-1s", "1h30", "99999999999999999999s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn since_takes_times_and_durations() {
        let time = parse_since("2026-01-31T12:00:00.5+01:00").unwrap();
        assert_eq!(time.to_string(), "2026-01-31T11:00:00.5Z");
        assert!(parse_since("10m").unwrap() < Timestamp::now());
        assert!(parse_since("yesterday").is_err());
    }

    #[test]
    fn ids_lose_their_hash_and_are_cut() {
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789abc");
        assert_eq!(short_id("abc"), "abc");
    }
}
