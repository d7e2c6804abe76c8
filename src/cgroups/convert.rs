//! Values that differ between cgroup v1 and v2.

/// CPU shares of v1 (2 to 262144) as a v2 weight (1 to 10000), by the curve that maps 2 to 1, 1024 to 100 and 262144 to
/// 10000, so that a default container weighs the same as a process outside any container (Kubernetes enhancement 2254).
/// 0 stays 0, meaning "leave as it is".
pub fn cpu_shares_to_weight(shares: u64) -> u64 {
    match shares {
        0 => 0,
        1..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            // The subtrahend keeps exact points such as 1024 from being lifted by rounding errors.
            (10f64.powf(exponent) - 1e-9).ceil() as u64
        }
    }
}

/// Block I/O weight of v1 (10 to 1000) as a v2 `io.weight` (1 to 10000).
pub(super) fn blkio_to_io_weight(weight: u16) -> u64 {
    match u64::from(weight) {
        0 => 0,
        w => 1 + w.saturating_sub(10) * 9999 / 990,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_the_published_points() {
        for (shares, weight) in [
            (0, 0),
            (1, 1),
            (2, 1),
            (1024, 100),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(cpu_shares_to_weight(shares), weight, "shares {shares}");
        }
    }

    #[test]
    fn weights_grow_with_shares() {
        let weights: Vec<_> = (1..=18).map(|p| cpu_shares_to_weight(1 << p)).collect();
        assert!(weights.is_sorted(), "{weights:?}");
    }

    #[test]
    fn io_weights_stay_in_range() {
        assert_eq!((blkio_to_io_weight(10), blkio_to_io_weight(1000)), (1, 10_000));
    }
}
