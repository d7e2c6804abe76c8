//! Networks of people, in the words of Wharf's own service.

use tonic::Status;
use wharf_proto::{api, record};

use super::{Face, status::status};
use crate::{netns::Membership, node::NetworkView};

impl Face {
    pub(super) async fn make_network(&self, request: api::CreateNetworkRequest) -> Result<api::NamedNetwork, Status> {
        let asked = request
            .network
            .ok_or_else(|| Status::invalid_argument("the request has no network"))?;
        let wanted = record::NamedNetwork {
            name: asked.name,
            ranges: asked
                .ranges
                .into_iter()
                .map(|range| record::NetworkRange {
                    subnet: range.subnet,
                    gateway: range.gateway,
                    ip_range: range.ip_range,
                    v6: range.v6,
                })
                .collect(),
            internal: asked.internal,
            mtu: asked.mtu,
            labels: asked.labels,
            ..Default::default()
        };
        let made = self.node()?.create_network(wanted).await;
        let definition = made.map_err(|error| status(&error))?;
        Ok(message(NetworkView {
            definition,
            members: Vec::new(),
        }))
    }

    pub(super) fn known_networks(&self) -> Result<Vec<api::NamedNetwork>, Status> {
        Ok(self.node()?.networks().into_iter().map(message).collect())
    }

    pub(super) async fn join_network(&self, request: api::ConnectNetworkRequest) -> Result<(), Status> {
        let wrong = |ip: &str| Status::invalid_argument(format!("{ip:?} is not an IP address"));
        let ips: Result<_, Status> = request.ips.iter().map(|ip| ip.parse().map_err(|_| wrong(ip))).collect();
        let wish = Membership {
            network: request.name,
            aliases: request.aliases,
            ips: ips?,
        };
        let connected = self.node()?.connect_network(&request.pod_sandbox_id, wish).await;
        connected.map_err(|error| status(&error))
    }
}

fn message(view: NetworkView) -> api::NamedNetwork {
    let NetworkView { definition, members } = view;
    let mut members: Vec<_> = members
        .into_iter()
        .map(|(pod, attachment)| {
            let record = pod.record.get();
            let metadata = record.config.as_ref().and_then(|config| config.metadata.clone());
            api::NetworkMember {
                pod_sandbox_id: pod.id.clone(),
                name: metadata.unwrap_or_default().name,
                ips: attachment.ips,
                device: attachment.device,
                names: attachment.names,
            }
        })
        .collect();
    members.sort_by(|one, other| one.name.cmp(&other.name));
    api::NamedNetwork {
        name: definition.name,
        ranges: definition
            .ranges
            .into_iter()
            .map(|range| api::NetworkRange {
                subnet: range.subnet,
                gateway: range.gateway,
                ip_range: range.ip_range,
                v6: range.v6,
            })
            .collect(),
        internal: definition.internal,
        mtu: definition.mtu,
        labels: definition.labels,
        created_at: definition.created_at,
        bridge: definition.bridge,
        members,
    }
}
