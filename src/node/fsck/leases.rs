//! Addresses and host ports of the built-in network.

use std::collections::HashSet;

use super::{Remedy, Result, Seen, found};
use crate::{netns, sandbox::Roots};

pub(super) fn look(roots: &Roots, seen: &mut Seen) -> Result<()> {
    let mut reserved = HashSet::new();
    for lease in netns::reserved(&roots.state)? {
        seen.leases += 1;
        let pod = seen.known.pods.get(&lease.holder);
        let problem = match pod {
            _ if !lease.is_usable => "its name is neither an address nor a port".to_owned(),
            _ if lease.holder.is_empty() => "nobody holds it".to_owned(),
            None if seen.known.directories.contains(&lease.holder) => continue,
            None => format!("its holder, pod {}, is not there", lease.holder),
            Some(pod) if pod.teardown_done => format!("its holder, pod {}, has been stopped", lease.holder),
            Some(_) => {
                reserved.insert((lease.holder, lease.name));
                continue;
            }
        };
        let object = lease.path.display().to_string();
        let mut found = found("lease", object, problem, "", Remedy::Remove(lease.path.clone()));
        found.path = Some(lease.path);
        seen.found.push(found);
    }
    for (id, pod) in &seen.known.pods {
        let Some(network) = pod.network.as_ref().filter(|_| !pod.teardown_done) else {
            continue;
        };
        let own = (network.kind == "builtin").then_some(&network.ips);
        let named = network.attachments.iter().map(|attachment| &attachment.ips);
        for ip in own.into_iter().chain(named).flatten() {
            if !reserved.contains(&(id.clone(), ip.clone())) {
                let problem = format!("its address {ip} is not reserved: another pod may get it");
                let advice = "start the daemon again, which reserves it";
                seen.found.push(found("pod", id, problem, advice, Remedy::None));
            }
        }
    }
    Ok(())
}
