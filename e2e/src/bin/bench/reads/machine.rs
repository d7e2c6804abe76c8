//! What the machine itself takes, and how busy it is.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use wharf_e2e::Result;

/// A thread that does with a socket only what a server must.
pub struct Floor(UnixStream);

impl Floor {
    pub fn start() -> Result<Self> {
        let (here, mut there) = UnixStream::pair()?;
        std::thread::spawn(move || {
            let block = vec![0; 112 << 10];
            let mut lengths = [0; 16];
            while there.read_exact(&mut lengths).is_ok() {
                let length = |at: usize| usize::from_be_bytes(std::array::from_fn(|n| lengths[at + n]));
                let mut request = vec![0; length(0)];
                let mut left = length(8);
                if there.read_exact(&mut request).is_err() {
                    return;
                }
                while left > 0 {
                    let count = left.min(block.len());
                    if there.write_all(&block[..count]).is_err() {
                        return;
                    }
                    left -= count;
                }
            }
        });
        Ok(Self(here))
    }

    /// Milliseconds of `there` bytes there and `back` bytes back.
    pub fn time(&mut self, there: usize, back: usize) -> Result<f64> {
        let back = back.max(1);
        let mut request = [there.to_be_bytes(), back.to_be_bytes()].concat();
        request.resize(16 + there, 0);
        let mut buffer = vec![0; 64 << 10];
        let begun = Instant::now();
        self.0.write_all(&request)?;
        let mut left = back;
        while left > 0 {
            match self.0.read(&mut buffer)? {
                0 => return Err("the thread that answers has ended".into()),
                count => left = left.saturating_sub(count),
            }
        }
        Ok(begun.elapsed().as_secs_f64() * 1000.0)
    }
}

/// What all processors have done, in the kernel's ticks.
pub struct Cpu {
    all: u64,
    idle: u64,
}

impl Cpu {
    pub fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat")?;
        let first = text.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = first.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        Ok(Self {
            all: ticks.iter().take(8).sum(),
            idle: ticks.iter().skip(3).take(2).sum(),
        })
    }

    /// Percent.
    pub fn busy_since(&self, before: &Self) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1) as f64;
        100.0 - 100.0 * self.idle.saturating_sub(before.idle) as f64 / all
    }
}
