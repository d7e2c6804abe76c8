//! What a pod's network devices have carried.

use std::path::{Path, PathBuf};

use super::{Error, Result, thread};

/// Counters of one device since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// The device's name inside the pod.
    pub name: String,
    /// What came in.
    pub received: Traffic,
    /// What went out.
    pub sent: Traffic,
}

/// Counters of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets with errors.
    pub errors: u64,
    /// Packets thrown away.
    pub dropped: u64,
}

/// See [`super::Networks::counters`].
pub(super) async fn read(netns: PathBuf) -> Result<Vec<Counters>> {
    thread::run("wharf-counters", move || {
        super::enter(&netns)?;
        // The list under /proc is written without the lock that every change of a device anywhere holds for long.
        let list = Path::new("/proc/thread-self/net/dev");
        let text = std::fs::read_to_string(list).map_err(|source| Error::io("read", list, source))?;
        Ok(parse(&text))
    })
    .await
}

/// Two lines of headings, then one for each device: eight columns in, eight out. The loopback device is left out: its
/// packets leave no pod.
fn parse(text: &str) -> Vec<Counters> {
    let device = |line: &str| {
        // The name may touch the first number; it can hold a colon itself (an alias).
        let (name, numbers) = line.rsplit_once(':')?;
        let numbers: Vec<u64> = numbers
            .split_whitespace()
            .map(|number| number.parse().ok())
            .collect::<Option<_>>()?;
        let traffic = |columns: &[u64]| match columns {
            [bytes, packets, errors, dropped, ..] => Some(Traffic {
                bytes: *bytes,
                packets: *packets,
                errors: *errors,
                dropped: *dropped,
            }),
            _ => None,
        };
        Some(Counters {
            name: name.trim().to_owned(),
            received: traffic(&numbers)?,
            sent: traffic(numbers.get(8..)?)?,
        })
    };
    text.lines()
        .skip(2)
        .filter_map(device)
        .filter(|device| device.name != "lo")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Inter-|   Receive                                                |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
        lo:     100       2    0    0    0     0          0         0      100       2    0    0    0     0       0          0\n  \
        eth0:12345678901      20    3    4    0     0          0         0      500       6    7    8    0     0       0          0\n\
        short: 1 2 3\n";

    #[test]
    fn the_kernels_table_is_read_without_loopback() {
        let got = parse(TEXT);
        assert_eq!(got.len(), 1, "{got:?}");
        assert_eq!(got[0].name, "eth0");
        let received = Traffic {
            bytes: 12_345_678_901,
            packets: 20,
            errors: 3,
            dropped: 4,
        };
        let sent = Traffic {
            bytes: 500,
            packets: 6,
            errors: 7,
            dropped: 8,
        };
        assert_eq!((got[0].received, got[0].sent), (received, sent));
        assert!(parse("").is_empty());
    }

    #[tokio::test]
    async fn a_namespace_that_is_gone_is_an_error_that_names_it() {
        let error = read("/nonexistent/ns/net".into()).await.unwrap_err().to_string();
        assert!(error.contains("/nonexistent/ns/net"), "{error}");
    }
}
