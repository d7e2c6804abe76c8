//! Port-forward over WebSocket channels: for each port a channel for data and one for errors, which begin with the
//! port's number in two bytes, the lower first.

use std::{io, sync::Arc};

use bytes::Bytes;
use tokio::{task::JoinSet, time::timeout};

use super::{DRAIN, Data, bridge, failure};
use crate::{
    node::Node,
    streaming::{
        Ended,
        http::Remote,
        inbox::{Broken, Inbox},
        server::Client,
        websocket::{Channels, Close, Form, Messages, Outlet},
    },
};

struct Channel {
    inbox: Arc<Inbox>,
    outlet: Outlet,
}

impl Data for Channel {
    async fn read(&self) -> Result<Option<Bytes>, Broken> {
        self.inbox.read().await
    }

    async fn write(&self, data: &[u8]) -> io::Result<()> {
        self.outlet.write(data).await
    }

    /// There is no word for it in this protocol, but that the connection closes.
    async fn finish(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Serves a client until it closes, or every pod's side has ended. There are few enough `ports` for the numbers of their
/// channels.
pub async fn channels(
    client: &Client<'_>,
    messages: Messages,
    form: Form,
    version: Remote,
    pod: &str,
    ports: &[u16],
) -> Result<(), Ended> {
    let mut inboxes = Vec::new();
    let mut forwards = JoinSet::new();
    for (index, port) in ports.iter().copied().enumerate() {
        let inbox = Arc::new(Inbox::new(Arc::clone(&client.budget)));
        inboxes.extend([Some(inbox.clone()), None]);
        let outlet = |offset: usize| Outlet::new(client.outgoing.clone(), form, (2 * index + offset) as u8);
        let data = Channel {
            inbox,
            outlet: outlet(0),
        };
        forwards.spawn(forward(client.node.clone(), pod.to_owned(), port, data, outlet(1)));
    }
    let mut connection = Channels::new(
        messages,
        form,
        version >= Remote::V5,
        inboxes,
        client.activity.clone(),
        client.outgoing.clone(),
    );
    let result = {
        let run = connection.run();
        tokio::pin!(run);
        loop {
            tokio::select! {
                ended = &mut run => break Err(ended),
                ended = client.outside() => break Err(ended),
                done = forwards.join_next() => if done.is_none() { break Ok(()) },
            }
        }
    };
    forwards.shutdown().await;
    if !matches!(result, Err(Ended::Closed | Ended::Io(_))) {
        connection.close(Close::Normal);
        let _ = timeout(DRAIN, connection.run()).await;
    }
    match result {
        Err(Ended::Closed) => Ok(()),
        other => other,
    }
}

async fn forward(node: Node, pod: String, port: u16, data: Channel, error: Outlet) {
    let begun = async {
        data.outlet.write(&port.to_le_bytes()).await?;
        error.write(&port.to_le_bytes()).await
    };
    if begun.await.is_err() {
        return;
    }
    let result = match node.connect_port(&pod, port).await {
        Ok(connection) => bridge(connection, &data).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(reason) = result {
        let _ = error.write(failure(port, &pod, reason).as_bytes()).await;
    }
    data.inbox.discard();
}
