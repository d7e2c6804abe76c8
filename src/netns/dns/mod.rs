//! Names of pods on named networks: a resolver for each network, which listens at the bridge's address and asks the node's
//! name servers for everything else.
//!
//! It listens there, and not in each pod, because one socket serves all pods of a network, because nothing is in the way
//! of a name server that runs in a pod, and because who asks is known by the address. It begins and ends with the daemon.
//! While the daemon is down nobody answers; the network's rules keep the kernel from saying so (see `nft::table`), so that
//! a C library repeats its question instead of giving up: it takes some seconds longer, and fails if the daemon is away for
//! longer than the library asks.

#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod message;
mod names;
mod room;
mod upstream;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Error, Result};
use message::{A, AAAA, IN, Outcome, PTR, Record};
use names::{Asked, Known};
pub(super) use names::{Member, Names};
use room::Room;
use upstream::Way;

#[cfg(test)]
pub(super) use message::tests;

const PORT: u16 = 53;
/// Questions handed on at a time; what comes beyond is answered with a failure. Names of pods need no such place.
const MOST: usize = 256;
/// How many of them one pod has, so that it can't take the others' places.
const MOST_OF_ONE: usize = 64;
/// Connections at a time, and of one pod; what comes beyond is closed.
const CONNECTIONS: usize = 128;
const CONNECTIONS_OF_ONE: usize = 16;
/// Longest question that is taken over UDP: with EDNS a client may add to it.
const DATAGRAM: usize = 4096;
/// A connection that says nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(10);

/// The resolver of one network; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Resolver(JoinSet<()>);

/// What its tasks share.
#[derive(Debug)]
struct Shared {
    network: String,
    names: Arc<Names>,
    questions: Room,
    connections: Room,
    /// Which of several addresses is told first.
    turn: AtomicUsize,
}

/// What a message gets.
enum Reply {
    /// This.
    Now(Vec<u8>),
    /// What the first of these servers says to the question, which ends there; none are the node's own.
    Of(Vec<IpAddr>, usize),
    /// Nothing at all.
    Nothing,
}

impl Resolver {
    /// Listens at the addresses, which must be this machine's.
    ///
    /// # Errors
    /// When one of them is taken, for example by another name server that listens on all.
    pub(super) async fn start(network: &str, addresses: &[IpAddr], names: &Arc<Names>) -> Result<Self> {
        let shared = Arc::new(Shared {
            network: network.to_owned(),
            names: Arc::clone(names),
            questions: Room::new(MOST, MOST_OF_ONE),
            connections: Room::new(CONNECTIONS, CONNECTIONS_OF_ONE),
            turn: AtomicUsize::new(0),
        });
        let mut tasks = JoinSet::new();
        for address in addresses {
            let at = SocketAddr::new(*address, PORT);
            let wrong = |source| Error::kernel(format!("listen for names of network {network} at {at}"), source);
            let udp = UdpSocket::bind(at).await.map_err(wrong)?;
            let tcp = TcpListener::bind(at).await.map_err(wrong)?;
            tasks.spawn(Arc::clone(&shared).serve_udp(udp));
            tasks.spawn(Arc::clone(&shared).serve_tcp(tcp));
        }
        Ok(Self(tasks))
    }

    /// Ends it. Its addresses are free when this has returned.
    pub(super) async fn end(mut self) {
        self.0.shutdown().await;
    }
}

impl Shared {
    async fn serve_udp(self: Arc<Self>, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut work = JoinSet::new();
        let mut buffer = vec![0; DATAGRAM];
        loop {
            tokio::select! {
                received = socket.recv_from(&mut buffer) => match received {
                    Ok((length, from)) => {
                        let asked = &buffer[..length];
                        match self.reply(asked, from.ip(), message::UDP) {
                            // Who has gone needs no answer.
                            Reply::Now(answer) => drop(socket.send_to(&answer, from).await),
                            Reply::Of(servers, end) => {
                                let (asked, shared, socket) = (asked.to_vec(), Arc::clone(&self), Arc::clone(&socket));
                                work.spawn(async move {
                                    let answer = shared.ask_outside(&asked, end, servers, from.ip(), Way::Udp).await;
                                    let _ = socket.send_to(&answer, from).await;
                                });
                            }
                            Reply::Nothing => {}
                        }
                    }
                    // What the kernel has to say of an earlier answer.
                    Err(error) => tracing::debug!(network = self.network, %error, "a question for a name"),
                },
                Some(_) = work.join_next() => {}
            }
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        let mut work = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, from)) => {
                        let Some(place) = self.connections.enter(from.ip()) else { continue };
                        let shared = Arc::clone(&self);
                        work.spawn(async move {
                            let _place = place;
                            shared.converse(stream, from.ip()).await;
                        });
                    }
                    // No descriptor is free, and nobody says when one is.
                    Err(error) => {
                        tracing::warn!(network = self.network, %error, "take a connection that asks for names");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = work.join_next() => {}
            }
        }
    }

    async fn converse(&self, mut stream: TcpStream, from: IpAddr) {
        while let Ok(Ok(asked)) = timeout(IDLE, upstream::read(&mut stream)).await {
            let answer = match self.reply(&asked, from, usize::from(u16::MAX)) {
                Reply::Now(answer) => answer,
                Reply::Of(servers, end) => self.ask_outside(&asked, end, servers, from, Way::Tcp).await,
                Reply::Nothing => return,
            };
            if !matches!(timeout(IDLE, upstream::write(&mut stream, &answer)).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// What others say to the question, or that they don't.
    async fn ask_outside(&self, asked: &[u8], end: usize, servers: Vec<IpAddr>, from: IpAddr, way: Way) -> Vec<u8> {
        let answer = match self.questions.enter(from) {
            Some(_place) => upstream::ask(asked, end, servers, way).await,
            None => None,
        };
        answer.unwrap_or_else(|| message::answer(asked, end, Outcome::Failed, &[], message::UDP))
    }

    /// What a message gets, in at most `most` bytes. Waits for nothing.
    fn reply(&self, asked: &[u8], from: IpAddr, most: usize) -> Reply {
        let from = from.to_canonical();
        let question = match message::question(asked) {
            Ok(question) => question,
            Err(outcome) => {
                // Strangers get nothing at all.
                let known = self.names.ask(&self.network, from, Asked::Name(""));
                return match known.and(outcome) {
                    Some(outcome) => Reply::Now(message::answer(asked, message::HEADER, outcome, &[], most)),
                    None => Reply::Nothing,
                };
            }
        };
        let about = match message::reversed(&question.name).filter(|_| question.kind == PTR) {
            Some(ip) => Asked::Address(ip),
            None => Asked::Name(&question.name),
        };
        let own = |outcome, records: &[Record]| {
            let answer = message::answer(asked, question.end, outcome, records, most);
            Reply::Now(answer)
        };
        match self.names.ask(&self.network, from, about) {
            None => Reply::Nothing,
            Some(Known::Addresses(mut ips)) if question.class == IN => {
                // Nothing of another type is known of a pod, and nobody else knows the pod.
                ips.retain(|ip| question.kind == if ip.is_ipv6() { AAAA } else { A });
                if !ips.is_empty() {
                    // Each of those that share a name gets its turn.
                    let turn = self.turn.fetch_add(1, Ordering::Relaxed) % ips.len();
                    ips.rotate_left(turn);
                }
                let records: Vec<_> = ips.into_iter().map(Record::Address).collect();
                own(Outcome::Answered, &records)
            }
            Some(Known::Name(name)) => own(Outcome::Answered, &[Record::Name(name)]),
            Some(Known::Elsewhere(servers)) => Reply::Of(servers, question.end),
            Some(Known::Addresses(_) | Known::Nothing) => own(Outcome::Failed, &[]),
        }
    }
}
