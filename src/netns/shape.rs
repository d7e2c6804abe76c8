//! Limits of what a device sends: a token bucket, tc-tbf(8).

use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use super::Result;
use super::link::Links;

/// From <linux/pkt_sched.h>.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: the kernel then counts by itself and needs no table.
const ETHERNET: u8 = 1;
/// Largest packet that the kernel hands to a device in one piece, bytes: the bucket must hold one.
const LARGEST_PACKET: u64 = 64 << 10;
/// Bursts are not longer than this part of a second's worth,
const BURST: u64 = 100;
/// and what waits is not older than this part of a second.
const QUEUE: u64 = 20;

impl Links {
    /// Lets the device send no more than `bits` a second. What it sends beyond waits, or is dropped when too much waits.
    pub(super) fn limit_rate(&mut self, index: u32, bits: u64) -> Result<()> {
        let mut message = TcMessage::with_index(index.cast_signed());
        message.header.parent = TcHandle::ROOT;
        message.attributes = vec![TcAttribute::Kind("tbf".to_owned()), TcAttribute::Options(options(bits))];
        self.replace(RouteNetlinkMessage::NewQueueDiscipline(message))
            .map_err(|refusal| refusal.during(format!("limit what device {index} sends to {bits} bits per second")))
    }
}

fn options(bits: u64) -> Vec<TcOption> {
    let rate = (bits / 8).max(1);
    let burst = (rate / BURST).clamp(LARGEST_PACKET, 16 << 20);
    let limit = (rate / QUEUE).clamp(LARGEST_PACKET, 1 << 30) + burst;
    let short = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    // struct tc_tbf_qopt: the rate, a peak rate that is not used, limit, buffer and mtu; the burst below replaces the
    // buffer, which would be in ticks.
    let mut parms = Vec::with_capacity(36);
    parms.extend_from_slice(&[0, ETHERNET]);
    parms.extend_from_slice(&[0; 6]);
    parms.extend_from_slice(&short(rate).to_ne_bytes());
    parms.extend_from_slice(&[0; 12]);
    parms.extend_from_slice(&short(limit).to_ne_bytes());
    parms.extend_from_slice(&[0; 8]);
    let mut options = vec![
        TcOption::Other(DefaultNla::new(TCA_TBF_PARMS, parms)),
        TcOption::Other(DefaultNla::new(TCA_TBF_BURST, short(burst).to_ne_bytes().to_vec())),
    ];
    if u32::try_from(rate).is_err() {
        options.push(TcOption::Other(DefaultNla::new(
            TCA_TBF_RATE64,
            rate.to_ne_bytes().to_vec(),
        )));
    }
    options
}
