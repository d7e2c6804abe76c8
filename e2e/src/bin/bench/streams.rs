//! How long it takes to move much data out of a container and into it, by every protocol of an exec.
//!
//! The client is as plain as can be, so that what is measured is the server: it counts what comes and throws it away.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

use futures_util::FutureExt as _;
use wharf_e2e::streams::spdy::Sender;
use wharf_e2e::{Result, container, pod};
use wharf_proto::cri as pb;

use crate::{Peer, cycle::Steps, memory};

/// What clients written in Go send at a time.
const PIECE: usize = 32 << 10;
/// Read from the socket at a time.
const BLOCK: usize = 256 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Spdy,
    WebSocket(&'static str),
}

/// With what is known of who speaks them: v5 is missing in containerd.
const PROTOCOLS: [Protocol; 4] = [
    Protocol::Spdy,
    Protocol::WebSocket("v5.channel.k8s.io"),
    Protocol::WebSocket("v4.channel.k8s.io"),
    Protocol::WebSocket("v4.base64.channel.k8s.io"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Out,
    In,
}

/// Seconds for `mib` MiB by each protocol and way, and the daemon's own processor time for it.
pub async fn transfers(peer: &Peer, image: &str, mib: usize) -> Result<(Steps, Steps)> {
    let config = pod("bench-streams", Path::new("/tmp/wharf-bench-logs"));
    std::fs::create_dir_all(&config.log_directory)?;
    let sandbox = peer.cri.run_pod(&config, &peer.handler).await?;
    let mut main = container("main", image, "");
    main.command = vec!["/bin/sleep".into(), "100000".into()];
    let id = peer.cri.create(&sandbox, &main, &config).await?;
    peer.cri.start(&id).await?;
    let (mut times, mut processor) = (Steps::new(), Steps::new());
    for way in [Way::Out, Way::In] {
        for protocol in PROTOCOLS {
            let (name, line) = match way {
                Way::Out => ("out", format!("dd if=/dev/zero bs=64k count={} 2>/dev/null", 16 * mib)),
                Way::In => (
                    "in",
                    format!(
                        "dd of=/dev/null bs=64k iflag=fullblock count={} 2>/dev/null; echo; sleep 1",
                        16 * mib
                    ),
                ),
            };
            // The way in ends with the command's word that it has everything: some servers break the connection when
            // the command has ended, so it takes its time for that.
            let request = pb::ExecRequest {
                container_id: id.clone(),
                cmd: vec!["/bin/sh".into(), "-c".into(), line],
                stdin: way == Way::In,
                stdout: true,
                ..Default::default()
            };
            let url = peer.cri.runtime.clone().exec(request).await?.into_inner().url;
            let before = peer.daemon.and_then(memory::processor_time);
            let moved = tokio::task::spawn_blocking(move || transfer(&url, protocol, way, mib << 20)).await?;
            let name = match protocol {
                Protocol::Spdy => format!("{name}, SPDY v4"),
                Protocol::WebSocket(version) => format!("{name}, WebSocket {version}"),
            };
            match moved {
                Ok(seconds) => times.push((name.clone(), seconds)),
                Err(error) => {
                    eprintln!("{}: {name}: {error}", peer.name);
                    continue;
                }
            }
            let after = peer.daemon.and_then(memory::processor_time);
            if let (Some(before), Some(after)) = (before, after) {
                processor.push((name, after - before));
            }
        }
    }
    peer.cri.stop_pod(&sandbox).await?;
    peer.cri.remove_pod(&sandbox).await?;
    Ok((times, processor))
}

fn transfer(url: &str, protocol: Protocol, way: Way, size: usize) -> Result<f64> {
    let rest = url.split_once("://").ok_or("no absolute URL")?.1;
    let (host, path) = rest.split_at(rest.find('/').ok_or("no path")?);
    let mut stream = TcpStream::connect(host)?;
    stream.set_nodelay(true)?;
    let mut read = BufReader::with_capacity(BLOCK, stream.try_clone()?);
    let begin = Instant::now();
    let upgrade = match protocol {
        Protocol::Spdy => {
            "POST PATH HTTP/1.1\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n".into()
        }
        Protocol::WebSocket(version) => format!(
            "GET PATH HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nOrigin: http://{host}\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {version}\r\n"
        ),
    };
    let request =
        upgrade.replace("PATH", path) + &format!("Host: {host}\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut line = String::new();
    read.read_line(&mut line)?;
    if !line.contains(" 101 ") {
        return Err(format!("refused: {}", line.trim()).into());
    }
    while !line.trim().is_empty() {
        line.clear();
        read.read_line(&mut line)?;
    }
    let mut streams = [0; 4];
    if protocol == Protocol::Spdy {
        let mut sender = Sender::new(Vec::new());
        for (index, kind) in [(ERROR, "error"), (STDIN, "stdin"), (STDOUT, "stdout")] {
            if index != STDIN || way == Way::In {
                let opened = sender.open(&[("streamtype", kind)]).now_or_never();
                streams[index] = opened.ok_or("memory is always ready")??;
            }
        }
        stream.write_all(&sender.write)?;
    }
    let writer = (way == Way::In).then(|| std::thread::spawn(move || feed(stream, protocol, streams[STDIN], size)));
    // When the first byte came.
    let mut said = None;
    let (came, status) = match protocol {
        Protocol::Spdy => read_spdy(&mut read, streams, &mut said)?,
        Protocol::WebSocket(version) => read_websocket(&mut read, version.contains("base64"), &mut said)?,
    };
    let end = said.filter(|_| way == Way::In).unwrap_or_else(Instant::now);
    let seconds = (end - begin).as_secs_f64();
    if let Some(writer) = writer {
        writer.join().map_err(|_| "the writer panicked")??;
    }
    if !status.contains("Success") || (way == Way::Out && came != size) {
        return Err(format!("{came} bytes came, and the status {status:?}").into());
    }
    Ok(seconds)
}

/// Numbers as WebSocket has them.
const STDIN: usize = 0;
const STDOUT: usize = 1;
const ERROR: usize = 3;

fn feed(mut stream: TcpStream, protocol: Protocol, stdin: u32, size: usize) -> std::io::Result<()> {
    let mut frame = Vec::new();
    match protocol {
        Protocol::Spdy => {
            frame.extend_from_slice(&stdin.to_be_bytes());
            frame.extend_from_slice(&(PIECE as u32).to_be_bytes());
            frame.resize(8 + PIECE, 0);
        }
        Protocol::WebSocket(version) => {
            // Base64 of zeroes is "A"; the last group of a piece holds two bytes.
            let base64 = version.contains("base64");
            let length = if base64 { PIECE.div_ceil(3) * 4 } else { PIECE } + 1;
            frame.extend_from_slice(&[if base64 { 0x81 } else { 0x82 }, 0x80 | 126]);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
            // A mask of zeroes: the server takes it off all the same.
            frame.extend_from_slice(&[0; 4]);
            frame.push(if base64 { b'0' } else { 0 });
            frame.resize(8 + length, if base64 { b'A' } else { 0 });
            if base64 && let Some(last) = frame.last_mut() {
                *last = b'=';
            }
        }
    }
    for _ in 0..size / PIECE {
        stream.write_all(&frame)?;
    }
    if protocol == Protocol::Spdy {
        stream.write_all(&stdin.to_be_bytes())?;
        stream.write_all(&[1, 0, 0, 0])?;
    }
    Ok(())
}

fn skip(read: &mut impl BufRead, mut count: usize) -> std::io::Result<()> {
    while count > 0 {
        let here = read.fill_buf()?.len().min(count);
        if here == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        read.consume(here);
        count -= here;
    }
    Ok(())
}

fn read_spdy(read: &mut impl BufRead, streams: [u32; 4], said: &mut Option<Instant>) -> Result<(usize, String)> {
    let (mut came, mut status) = (0, Vec::new());
    loop {
        let mut head = [0; 8];
        if let Err(error) = read.read_exact(&mut head) {
            // Some say that they have said everything by closing.
            return if status.is_empty() {
                Err(error.into())
            } else {
                Ok((came, String::from_utf8(status)?))
            };
        }
        let [a, b, c, d, flags, x, y, z] = head;
        let (number, length) = (
            u32::from_be_bytes([a, b, c, d]),
            u32::from_be_bytes([0, x, y, z]) as usize,
        );
        if number == streams[ERROR] {
            read.by_ref().take(length as u64).read_to_end(&mut status)?;
            if flags & 1 != 0 {
                return Ok((came, String::from_utf8(status)?));
            }
            continue;
        }
        if number == streams[STDOUT] && length > 0 {
            said.get_or_insert_with(Instant::now);
            came += length;
        }
        skip(read, length)?;
    }
}

fn read_websocket(read: &mut impl BufRead, base64: bool, said: &mut Option<Instant>) -> Result<(usize, String)> {
    let mut came = 0;
    loop {
        let mut head = [0; 2];
        read.read_exact(&mut head)?;
        let mut length = [0; 8];
        let length = match head[1] & 0x7f {
            126 => {
                read.read_exact(&mut length[6..])?;
                u64::from_be_bytes(length)
            }
            127 => {
                read.read_exact(&mut length)?;
                u64::from_be_bytes(length)
            }
            short => u64::from(short),
        } as usize;
        if head[0] & 8 != 0 || length == 0 {
            skip(read, length)?;
            continue;
        }
        let mut channel = [0];
        read.read_exact(&mut channel)?;
        let channel = usize::from(if base64 { channel[0] - b'0' } else { channel[0] });
        let length = length - 1;
        if channel == ERROR && length > 0 {
            let mut status = vec![0; length];
            read.read_exact(&mut status)?;
            if base64 {
                use base64::{Engine as _, engine::general_purpose::STANDARD};
                status = STANDARD.decode(status)?;
            }
            return Ok((came, String::from_utf8(status)?));
        }
        let mut padding = 0;
        if base64 && length >= 2 {
            skip(read, length - 2)?;
            let mut end = [0; 2];
            read.read_exact(&mut end)?;
            padding = end.iter().filter(|byte| **byte == b'=').count();
        } else {
            skip(read, length)?;
        }
        if channel == STDOUT && length > 0 {
            said.get_or_insert_with(Instant::now);
            came += if base64 { length / 4 * 3 - padding } else { length };
        }
    }
}
