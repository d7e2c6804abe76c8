//! Traffic that is counted, from one network namespace into another: datagrams with numbers that come back, and connections
//! one after the other. What a daemon's end and start must not touch.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use crate::Result;

/// A thread looks so often whether it shall end.
const TICK: Duration = Duration::from_millis(50);
/// What has not come back after so long is lost.
const PATIENCE: Duration = Duration::from_secs(3);

/// A thread in a namespace, which ends when it is told to or dropped.
struct Worker<T> {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Worker<T> {
    /// Starts `work` in the namespace at `netns`; `begin` makes its sockets first, and its failure is the caller's.
    fn start<S: Send + 'static>(
        netns: &Path,
        begin: impl FnOnce() -> std::io::Result<S> + Send + 'static,
        work: impl FnOnce(S, &AtomicBool) -> T + Send + 'static,
    ) -> Result<Self> {
        let handle = File::open(netns).map_err(|error| format!("open {}: {error}", netns.display()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, begun) = mpsc::channel();
        let until = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let sockets = setns(&handle, CloneFlags::CLONE_NEWNET)
                .map_err(std::io::Error::from)
                .and_then(|()| begin());
            // The namespace lives as long as the sockets, not longer.
            drop(handle);
            match sockets {
                Ok(sockets) => {
                    let _ = ready.send(Ok(()));
                    Some(work(sockets, &until))
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                    None
                }
            }
        });
        begun.recv()??;
        let thread =
            std::thread::spawn(move || thread.join().ok().flatten().expect("a worker that has begun ends well"));
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    fn end(mut self) -> T {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it ends once");
        thread.join().expect("a worker does not panic")
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Lets a socket hold what comes while its thread has no processor: what is lost is to be the network's fault.
fn roomy(socket: &UdpSocket) -> std::io::Result<()> {
    let bytes: libc::c_int = 8 << 20;
    // SAFETY: the socket is open, and the pointer and length are those of a value that outlives the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    match outcome {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Answers datagrams.
pub struct Datagrams {
    _worker: Worker<()>,
}

impl Datagrams {
    /// Listens at an address in the namespace.
    ///
    /// # Errors
    /// When the namespace can't be entered or the address is taken.
    pub fn start(netns: &Path, at: SocketAddr, answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> Result<Self> {
        let begin = move || {
            let socket = UdpSocket::bind(at)?;
            roomy(&socket)?;
            socket.set_read_timeout(Some(TICK))?;
            Ok(socket)
        };
        let work = move |socket: UdpSocket, stop: &AtomicBool| {
            let mut buffer = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&answer(&buffer[..length]), from);
                }
            }
        };
        let worker = Worker::start(netns, begin, work)?;
        Ok(Self { _worker: worker })
    }
}

/// Sends datagrams back, and tells who connects the address that it seems to come from and a greeting.
pub struct Server {
    _datagrams: Datagrams,
    _connections: Worker<()>,
}

impl Server {
    /// Listens at `port` of all addresses in the namespace.
    ///
    /// # Errors
    /// When the namespace can't be entered or the port is taken.
    pub fn start(netns: &Path, port: u16, greeting: &str) -> Result<Self> {
        let datagrams = Datagrams::start(netns, (Ipv6Addr::UNSPECIFIED, port).into(), |message| message.to_vec())?;
        let greeting = greeting.to_owned();
        let connections = Worker::start(
            netns,
            move || {
                let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            },
            move |listener, stop| {
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((mut stream, from)) => {
                            let from = from.ip().to_canonical();
                            let _ = stream.set_nonblocking(false);
                            let _ = write!(stream, "{greeting} {from}");
                        }
                        // Nobody waits; a poll costs less than what it saves here.
                        Err(_) => std::thread::sleep(Duration::from_millis(1)),
                    }
                }
            },
        )?;
        Ok(Self {
            _datagrams: datagrams,
            _connections: connections,
        })
    }
}

/// What became of what was sent.
#[derive(Debug, Clone, Default)]
pub struct Counted {
    pub sent: usize,
    /// Numbers of what did not come back, with what was said of it.
    pub lost: Vec<(usize, String)>,
    /// How long each took, sorted.
    pub times: Vec<Duration>,
}

impl Counted {
    fn of(sent: usize, lost: Vec<(usize, String)>, mut times: Vec<Duration>) -> Self {
        times.sort();
        Self { sent, lost, times }
    }

    /// The time that so many of a thousand did not exceed.
    pub fn at(&self, per_mille: usize) -> Duration {
        let last = self.times.len().saturating_sub(1);
        self.times.get(last * per_mille / 1000).copied().unwrap_or_default()
    }
}

impl std::fmt::Display for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} sent, {} lost, median {:?}, 99 % {:?}, longest {:?}",
            self.sent,
            self.lost.len(),
            self.at(500),
            self.at(990),
            self.at(1000)
        )
    }
}

/// Numbered traffic that goes on until it is ended.
pub struct Pulse(Worker<Counted>);

impl Pulse {
    /// Sends a datagram to a [`Server`] after each pause of `every`.
    ///
    /// # Errors
    /// When the namespace can't be entered.
    pub fn datagrams(netns: &Path, to: SocketAddr, every: Duration) -> Result<Self> {
        let begin = move || {
            let own: SocketAddr = if to.is_ipv4() {
                ([0; 4], 0).into()
            } else {
                ([0u16; 8], 0).into()
            };
            let socket = UdpSocket::bind(own)?;
            roomy(&socket)?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(TICK))?;
            Ok((socket.try_clone()?, socket))
        };
        let work = move |(sender, receiver): (UdpSocket, UdpSocket), stop: &AtomicBool| {
            let begin = Instant::now();
            let ended = AtomicBool::new(false);
            let (mut lost, mut sent) = (Vec::new(), 0u64);
            let back = std::thread::scope(|scope| {
                let receiver = scope.spawn(|| {
                    let mut back: Vec<(u64, Duration)> = Vec::new();
                    let mut last = Instant::now();
                    // Until nothing more can come.
                    while !ended.load(Ordering::Relaxed) || last.elapsed() < TICK * 4 {
                        let mut message = [0; 16];
                        if receiver.recv(&mut message).is_ok_and(|length| length == 16) {
                            let [number, nanos] = [0, 8].map(|at| {
                                let mut bytes = [0; 8];
                                bytes.copy_from_slice(&message[at..at + 8]);
                                u64::from_be_bytes(bytes)
                            });
                            back.push((number, begin.elapsed().saturating_sub(Duration::from_nanos(nanos))));
                            last = Instant::now();
                        }
                    }
                    back
                });
                while !stop.load(Ordering::Relaxed) {
                    let mut message = sent.to_be_bytes().to_vec();
                    message.extend((begin.elapsed().as_nanos() as u64).to_be_bytes());
                    if let Err(error) = sender.send(&message) {
                        lost.push((sent as usize, error.to_string()));
                    }
                    sent += 1;
                    std::thread::sleep(every);
                }
                ended.store(true, Ordering::Relaxed);
                receiver.join().unwrap_or_default()
            });
            let mut came = vec![false; sent as usize];
            for (number, _) in &back {
                came[*number as usize] = true;
            }
            let missing = came.iter().enumerate().filter(|(_, came)| !**came);
            lost.extend(missing.map(|(number, _)| (number, "did not come back".to_owned())));
            Counted::of(sent as usize, lost, back.into_iter().map(|(_, time)| time).collect())
        };
        Worker::start(netns, begin, work).map(Self)
    }

    /// Connects to a [`Server`] after each pause of `every`, and reads what it says.
    ///
    /// # Errors
    /// When the namespace can't be entered.
    pub fn connections(netns: &Path, to: SocketAddr, every: Duration) -> Result<Self> {
        let work = move |(), stop: &AtomicBool| {
            let (mut lost, mut times, mut sent) = (Vec::new(), Vec::new(), 0);
            while !stop.load(Ordering::Relaxed) {
                let begin = Instant::now();
                match greeting(to) {
                    Ok(_) => times.push(begin.elapsed()),
                    Err(error) => lost.push((sent, error.to_string())),
                }
                sent += 1;
                std::thread::sleep(every);
            }
            Counted::of(sent, lost, times)
        };
        Worker::start(netns, || Ok(()), work).map(Self)
    }

    /// Ends it, waits for what is under way, and counts.
    pub fn end(self) -> Counted {
        self.0.end()
    }
}

fn greeting(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    match text.is_empty() {
        true => Err(std::io::Error::other("nothing was said")),
        false => Ok(text),
    }
}

/// What the [`Server`] at `to` says to who calls from the namespace.
///
/// # Errors
/// When the namespace can't be entered, or nobody answers.
pub fn call(netns: &Path, to: SocketAddr) -> Result<String> {
    let call = Worker::start(netns, || Ok(()), move |(), _| greeting(to))?;
    Ok(call.end()?)
}
