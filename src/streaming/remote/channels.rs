//! Exec and attach over WebSocket: streams have fixed numbers.

use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::time::timeout;

use super::{LINGER, Reader, Streams, Writer, session, status::Outcome};
use crate::streaming::{
    Ended, Grant,
    http::Remote,
    inbox::Inbox,
    server::Client,
    websocket::{Channels, Close, Form, Messages, Outlet},
};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Serves a client that speaks WebSocket.
pub async fn channels(
    client: &Client<'_>,
    messages: Messages,
    form: Form,
    version: Remote,
    grant: Grant,
) -> Result<(), Ended> {
    let (stdin, stdout, stderr, tty) = match &grant {
        Grant::Exec { options: o, .. } => (o.stdin, o.stdout, o.stderr, o.tty),
        Grant::Attach { options: o, .. } => (o.stdin, o.stdout, o.stderr, o.tty),
        Grant::PortForward { .. } => return Err(Ended::NoStreams),
    };
    let inbox = |wanted: bool| wanted.then(|| Arc::new(Inbox::new(Arc::clone(&client.budget))));
    let (input, sizes) = (inbox(stdin), inbox(tty));
    let outlet = |number| Writer::Channel(Outlet::new(client.outgoing.clone(), form, number));
    let streams = Streams {
        stdin: input.clone().map(Reader::Channel),
        stdout: stdout.then(|| outlet(STDOUT)),
        stderr: stderr.then(|| outlet(STDERR)),
        resize: sizes.clone().map(Reader::Channel),
        error: outlet(ERROR),
        json: version >= Remote::V4,
    };
    let mut inboxes = vec![None; usize::from(RESIZE) + 1];
    inboxes[usize::from(STDIN)] = input;
    inboxes[usize::from(RESIZE)] = sizes;
    let closes = version >= Remote::V5;
    let mut connection = Channels::new(
        messages,
        form,
        closes,
        inboxes,
        client.activity.clone(),
        client.outgoing.clone(),
    );
    let told = {
        let serve = async { session::run(client.node, grant, &streams).await };
        // Polled again after its end, it would panic; fused, it waits.
        let run = connection.run().fuse();
        tokio::pin!(run);
        let told = tokio::select! {
            ended = &mut run => Err(ended),
            ended = client.outside() => Err(ended),
            told = serve => told.map_err(Ended::from),
        };
        if let Err(reason @ (Ended::Stopping | Ended::Idle)) = &told {
            let outcome = Outcome::Failed(reason.to_string());
            tokio::select! {
                _ = &mut run => {}
                _ = timeout(LINGER, session::tell(&streams, &outcome)) => {}
            }
        }
        told
    };
    if !matches!(told, Err(Ended::Closed | Ended::Io(_) | Ended::WebSocket(_))) {
        for reader in [&streams.stdin, &streams.resize].into_iter().flatten() {
            reader.discard();
        }
        let stopping = matches!(told, Err(Ended::Stopping));
        connection.close(if stopping { Close::GoingAway } else { Close::Normal });
        let _ = timeout(LINGER, connection.run()).await;
    }
    told
}
