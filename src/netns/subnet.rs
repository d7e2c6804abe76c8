//! Subnets: addresses that pods can have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Error, Result};

/// How many addresses of a subnet are handed out at most; more than any node has pods.
const MOST: u128 = 1 << 20;

/// A network address and the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Subnet {
    network: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// Reads CIDR notation.
    ///
    /// # Errors
    /// When `text` is no subnet of the wanted family with room for a gateway and a pod; `setting` is named.
    pub(super) fn parse(setting: &'static str, text: &str, v6: bool) -> Result<Self> {
        let wrong = |reason: &str| Error::Setting {
            setting,
            reason: format!("{text:?} {reason}"),
        };
        let (address, prefix) = text.split_once('/').ok_or_else(|| wrong("has no /prefix"))?;
        let address: IpAddr = address.parse().map_err(|_| wrong("does not begin with an address"))?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong("does not end with a prefix length"))?;
        if address.is_ipv6() != v6 {
            return Err(wrong(if v6 { "is not IPv6" } else { "is not IPv4" }));
        }
        // The shortest ones: a network, a gateway, a pod, a broadcast address.
        if prefix == 0 || prefix > if v6 { 126 } else { 30 } {
            return Err(wrong("has a prefix length out of range"));
        }
        Ok(Self::holding(address, prefix))
    }

    /// The subnet with that prefix length that `address` is in.
    pub(super) fn holding(address: IpAddr, prefix: u8) -> Self {
        let plain = Self {
            network: address,
            prefix,
        };
        Self {
            network: from_number(number(address) & number(plain.mask()), address.is_ipv6()),
            prefix,
        }
    }

    pub(super) fn is_v6(&self) -> bool {
        self.network.is_ipv6()
    }

    pub(super) fn network(&self) -> IpAddr {
        self.network
    }

    pub(super) fn prefix(&self) -> u8 {
        self.prefix
    }

    pub(super) fn mask(&self) -> IpAddr {
        match self.network {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(
                u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0),
            )),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(
                u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0),
            )),
        }
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv6() == self.is_v6() && Self::holding(address, self.prefix) == *self
    }

    /// Reads CIDR notation of a part of a subnet, which may be as small as one address.
    pub(super) fn part(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        let longest = if address.is_ipv6() { 128 } else { 32 };
        (1..=longest).contains(&prefix).then(|| Self::holding(address, prefix))
    }

    /// True if an address is in both.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// How many addresses there are, at most as many as are handed out.
    pub(super) fn count(&self) -> u32 {
        let bits = if self.is_v6() { 128 } else { 32 } - u32::from(self.prefix);
        1u128.checked_shl(bits).unwrap_or(u128::MAX).min(MOST) as u32
    }

    /// The address with this number, counted from the network's own.
    pub(super) fn nth(&self, number_in: u32) -> IpAddr {
        from_number(number(self.network) + u128::from(number_in), self.is_v6())
    }

    /// The inverse of [`Self::nth`].
    pub(super) fn index(&self, address: IpAddr) -> Option<u32> {
        let index = number(address).checked_sub(number(self.network))?;
        u32::try_from(index)
            .ok()
            .filter(|index| self.contains(address) && *index < self.count())
    }

    /// The last address.
    pub(super) fn last(&self) -> IpAddr {
        let host = match self.is_v6() {
            true => !number(self.mask()),
            false => u128::from(!(number(self.mask()) as u32)),
        };
        from_number(number(self.network) | host, self.is_v6())
    }

    /// The bridge's own address: the first.
    pub(super) fn gateway(&self) -> IpAddr {
        from_number(number(self.network) + 1, self.is_v6())
    }

    /// How many addresses pods can have.
    pub(super) fn size(&self) -> u32 {
        let bits = if self.is_v6() { 128 } else { 32 } - u32::from(self.prefix);
        let all = 1u128.checked_shl(bits).unwrap_or(u128::MAX).min(MOST);
        // Without the network, the gateway and the broadcast address.
        (all - 3) as u32
    }

    /// The pod address with this number, which is below [`Self::size`].
    pub(super) fn pod_address(&self, place: u32) -> IpAddr {
        from_number(number(self.network) + 2 + u128::from(place), self.is_v6())
    }

    /// The inverse of [`Self::pod_address`].
    pub(super) fn place(&self, address: IpAddr) -> Option<u32> {
        let place = number(address).checked_sub(number(self.network) + 2)?;
        u32::try_from(place)
            .ok()
            .filter(|place| self.contains(address) && *place < self.size())
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn from_number(number: u128, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::from_bits(number).into()
    } else {
        Ipv4Addr::from_bits(number as u32).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_address_is_the_gateways_and_the_last_is_nobodys() {
        let subnet = Subnet::parse("subnet", "10.1.2.0/29", false).unwrap();
        let all: Vec<String> = (0..subnet.size())
            .map(|place| subnet.pod_address(place).to_string())
            .collect();
        assert_eq!(subnet.gateway().to_string(), "10.1.2.1");
        assert_eq!(all, ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]);
        assert_eq!(subnet.place("10.1.2.6".parse().unwrap()), Some(4));
        for outside in ["10.1.2.1", "10.1.2.7", "10.1.3.2", "::2"] {
            assert_eq!(subnet.place(outside.parse().unwrap()), None, "{outside}");
        }
    }

    #[test]
    fn wide_ones_are_cut_to_what_a_node_can_use() {
        let subnet = Subnet::parse("subnet_v6", "fd00:77::/64", true).unwrap();
        assert_eq!(subnet.size(), (1 << 20) - 3);
        assert_eq!(subnet.pod_address(0).to_string(), "fd00:77::2");
        assert_eq!(subnet.mask().to_string(), "ffff:ffff:ffff:ffff::");
    }

    #[test]
    fn what_is_no_subnet_is_refused() {
        for text in [
            "10.0.0.0",
            "10.0.0.0/31",
            "10.0.0.0/0",
            "fd00::/64",
            "x/8",
            "10.0.0.0/x",
        ] {
            let error = Subnet::parse("builtin_network.subnet", text, false)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("builtin_network.subnet") && error.contains(text),
                "{error}"
            );
        }
    }
}
