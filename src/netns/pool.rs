//! The addresses that a network hands out.

use std::net::IpAddr;

use super::subnet::Subnet;

/// A subnet with its gateway, and the part of it that pods get addresses of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pool {
    pub(super) subnet: Subnet,
    pub(super) gateway: IpAddr,
    /// None is all of the subnet.
    range: Option<Subnet>,
}

impl Pool {
    /// All of a subnet, with the first address as gateway.
    pub(super) fn whole(subnet: Subnet) -> Self {
        Self {
            subnet,
            gateway: subnet.gateway(),
            range: None,
        }
    }

    /// A subnet with another gateway, or of which a part is handed out.
    ///
    /// # Errors
    /// A sentence about the one that is not in the subnet.
    pub(super) fn new(subnet: Subnet, gateway: Option<IpAddr>, range: Option<Subnet>) -> Result<Self, String> {
        let gateway = gateway.unwrap_or_else(|| subnet.gateway());
        let pool = Self { subnet, gateway, range };
        if !subnet.contains(gateway) || pool.is_special(gateway) {
            return Err(format!("gateway {gateway} is no address of a machine in {subnet}"));
        }
        match range {
            Some(range) if range.prefix() < subnet.prefix() || !subnet.contains(range.network()) => {
                Err(format!("ip-range {range} is not in {subnet}"))
            }
            _ => Ok(pool),
        }
    }

    /// How many places there are; some may be reserved.
    pub(super) fn size(&self) -> u32 {
        self.range.map_or_else(|| self.subnet.size(), |range| range.count())
    }

    /// The address at a place below [`Pool::size`]; none if it is not for pods.
    pub(super) fn address(&self, place: u32) -> Option<IpAddr> {
        let address = match self.range {
            Some(range) => range.nth(place),
            None => self.subnet.pod_address(place),
        };
        (address != self.gateway && !self.is_special(address)).then_some(address)
    }

    /// The place of an address.
    pub(super) fn place(&self, address: IpAddr) -> Option<u32> {
        match self.range {
            Some(range) => range.index(address),
            None => self.subnet.place(address),
        }
    }

    /// Whether a pod may ask for this address.
    ///
    /// # Errors
    /// A sentence about why it may not.
    pub(super) fn check(&self, address: IpAddr) -> Result<(), String> {
        if !self.subnet.contains(address) || self.is_special(address) {
            return Err(format!("{address} is no address of a machine in {}", self.subnet));
        }
        match address == self.gateway {
            true => Err(format!("{address} is the gateway of {}", self.subnet)),
            false => Ok(()),
        }
    }

    /// The network's own address, and the one that means all.
    fn is_special(&self, address: IpAddr) -> bool {
        address == self.subnet.network() || !self.subnet.is_v6() && address == self.subnet.last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        Subnet::parse("subnet", text, text.contains(':')).unwrap()
    }

    #[test]
    fn a_range_and_another_gateway_are_kept_to() {
        let range = subnet("10.1.0.252/30");
        let pool = Pool::new(subnet("10.1.0.0/24"), Some("10.1.0.254".parse().unwrap()), Some(range)).unwrap();
        let all: Vec<String> = (0..pool.size())
            .filter_map(|place| pool.address(place))
            .map(|ip| ip.to_string())
            .collect();
        assert_eq!(all, ["10.1.0.252", "10.1.0.253"]);
        assert_eq!(pool.place("10.1.0.253".parse().unwrap()), Some(1));
        // Outside of the range, and asked for by name.
        assert!(pool.check("10.1.0.7".parse().unwrap()).is_ok());
        for (address, word) in [
            ("10.1.0.254", "gateway"),
            ("10.1.0.0", "no address"),
            ("10.1.0.255", "no address"),
            ("10.2.0.1", "no address"),
            ("fd00::1", "no address"),
        ] {
            let error = pool.check(address.parse().unwrap()).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn what_is_not_in_the_subnet_is_refused() {
        let net = subnet("10.1.0.0/24");
        assert!(Pool::new(net, Some("10.2.0.1".parse().unwrap()), None).is_err());
        assert!(Pool::new(net, Some("10.1.0.255".parse().unwrap()), None).is_err());
        assert!(Pool::new(net, None, Some(subnet("10.0.0.0/8"))).is_err());
        assert!(Pool::new(net, None, Some(subnet("10.2.0.0/28"))).is_err());
        assert_eq!(Pool::new(net, None, None).unwrap(), Pool::whole(net));
    }
}
