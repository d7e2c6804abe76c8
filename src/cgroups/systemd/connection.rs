//! A conversation with systemd's manager: one call at a time, then, where it is a job, the wait for its end.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use super::wire::{self, ERROR, FIXED, Message, Method, RETURN, Reader, SIGNAL, Writer};

/// systemd's own socket for root. It needs no bus, and so works while dbus starts again, and in a container's machine.
const PRIVATE: &str = "/run/systemd/private";
/// The system's bus, for where the other is not.
const BUS: &str = "/run/dbus/system_bus_socket";

/// How long systemd may take for one call with its job. It is busy for seconds while units are loaded anew.
const LIMIT: Duration = Duration::from_secs(25);

/// Most jobs whose end is remembered while another's is waited for.
const MOST_ENDED: usize = 256;

/// systemd as the other end; a connection for one or a few calls.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    serial: u32,
    until: Instant,
    /// Jobs that have ended: object path and result.
    ended: Vec<(String, String)>,
}

/// Why a call did not do what it should.
#[derive(Debug)]
pub enum Failure {
    /// The way to systemd.
    Io(io::Error),
    /// systemd's answer: the error's name and its words.
    Refused { name: String, words: String },
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Io(error)
    }
}

impl Failure {
    /// The last part of the error's name, such as `NoSuchUnit`.
    pub fn kind(&self) -> &str {
        match self {
            Failure::Io(_) => "",
            Failure::Refused { name, .. } => name.rsplit('.').next().unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Io(error) => error.fmt(f),
            Failure::Refused { words, .. } if !words.is_empty() => words.fmt(f),
            Failure::Refused { name, .. } => name.fmt(f),
        }
    }
}

const fn manager(name: &'static str, signature: &'static str) -> Method {
    Method {
        destination: "org.freedesktop.systemd1",
        object: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        name,
        signature,
    }
}

pub const START_TRANSIENT: Method = manager("StartTransientUnit", "ssa(sv)a(sa(sv))");
pub const STOP: Method = manager("StopUnit", "ss");
pub const RESET_FAILED: Method = manager("ResetFailedUnit", "s");
pub const SET_PROPERTIES: Method = manager("SetUnitProperties", "sba(sv)");
pub const GET_UNIT: Method = manager("GetUnit", "s");
const SUBSCRIBE: Method = manager("Subscribe", "");

const fn bus(name: &'static str, signature: &'static str) -> Method {
    Method {
        destination: "org.freedesktop.DBus",
        object: "/org/freedesktop/DBus",
        interface: "org.freedesktop.DBus",
        name,
        signature,
    }
}

impl Connection {
    /// Connects as the calling process, which systemd takes for the sender of all that follows.
    ///
    /// # Errors
    /// When neither socket leads to a systemd that knows this process as root.
    pub fn open() -> Result<Connection, Failure> {
        match Connection::at(PRIVATE) {
            Ok(direct) => Ok(direct),
            Err(first) => {
                let mut bused = Connection::at(BUS).map_err(|_| first)?;
                bused.call(&bus("Hello", ""), Writer::default())?;
                let mut rule = Writer::default();
                rule.text(
                    "type='signal',sender='org.freedesktop.systemd1',\
                     interface='org.freedesktop.systemd1.Manager',member='JobRemoved'",
                );
                bused.call(&bus("AddMatch", "s"), rule)?;
                bused.call(&SUBSCRIBE, Writer::default())?;
                Ok(bused)
            }
        }
    }

    fn at(path: &str) -> Result<Connection, Failure> {
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
        Connection::over(UnixStream::connect(path).map_err(at)?).map_err(|error| at(error).into())
    }

    fn over(stream: UnixStream) -> io::Result<Connection> {
        stream.set_write_timeout(Some(LIMIT))?;
        let mut connection = Connection {
            stream,
            serial: 0,
            until: Instant::now() + LIMIT,
            ended: Vec::new(),
        };
        connection.authenticate()?;
        Ok(connection)
    }

    /// EXTERNAL: the kernel tells who we are; the name is the user's number in hexadecimal digits of its text.
    fn authenticate(&mut self) -> io::Result<()> {
        let user = nix::unistd::geteuid().to_string();
        let greeting = format!("\0AUTH EXTERNAL {}\r\n", hex::encode(&user));
        self.stream.write_all(greeting.as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.fill(&mut byte)?;
            line.extend(byte);
            if line.len() > 512 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "D-Bus: no greeting"));
            }
        }
        if !line.starts_with(b"OK ") {
            let words = String::from_utf8_lossy(&line).trim().to_owned();
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("D-Bus: not accepted as user {user}: {words}"),
            ));
        }
        self.stream.write_all(b"BEGIN\r\n")
    }

    /// Reads all of `buffer` before the time is up.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("systemd did not answer within {} s", LIMIT.as_secs()),
                ));
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                // The time is looked at above.
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Message> {
        let mut fixed = [0; FIXED];
        self.fill(&mut fixed)?;
        let (fields, body) = wire::rest(&fixed)?;
        let mut bytes = vec![0; fields + body];
        self.fill(&mut bytes)?;
        let body = bytes.split_off(fields);
        let message = wire::message(&fixed, &bytes, body)?;
        if message.kind == SIGNAL && message.member == "JobRemoved" {
            let mut reader = Reader::new(&message.body, 0);
            reader.u32()?;
            let job = reader.text()?;
            reader.text()?;
            if self.ended.len() >= MOST_ENDED {
                self.ended.remove(0);
            }
            self.ended.push((job, reader.text()?));
        }
        Ok(message)
    }

    /// Calls a method; returns the body of the answer.
    ///
    /// # Errors
    /// The answer, if it is an error; else what is wrong with the way there.
    pub fn call(&mut self, method: &Method, body: Writer) -> Result<Vec<u8>, Failure> {
        self.until = Instant::now() + LIMIT;
        self.serial += 1;
        let serial = self.serial;
        self.stream.write_all(&wire::call(method, serial, body))?;
        loop {
            let message = self.receive()?;
            match message.kind {
                RETURN if message.answers == serial => return Ok(message.body),
                ERROR if message.answers == serial => {
                    return Err(Failure::Refused {
                        name: message.error,
                        words: Reader::new(&message.body, 0).text().unwrap_or_default(),
                    });
                }
                _ => {}
            }
        }
    }

    /// Calls a method that answers with a job, and waits for the job's end; returns its result, `done` if all is well.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn job(&mut self, method: &Method, body: Writer) -> Result<String, Failure> {
        let answer = self.call(method, body)?;
        let job = Reader::new(&answer, 0).text()?;
        loop {
            if let Some((_, result)) = self.ended.iter().find(|(ended, _)| *ended == job) {
                return Ok(result.clone());
            }
            self.receive()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The other end, as far as the greeting.
    fn greeted(serve: impl FnOnce(UnixStream) + Send + 'static) -> io::Result<Connection> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut seen = Vec::new();
            let mut byte = [0];
            while !seen.ends_with(b"\r\n") && theirs.read(&mut byte).is_ok_and(|n| n == 1) {
                seen.extend(byte);
            }
            assert!(seen.starts_with(b"\0AUTH EXTERNAL "), "{seen:?}");
            serve(theirs);
        });
        Connection::over(ours)
    }

    #[test]
    fn a_refused_greeting_is_an_error_with_its_words() {
        let error = greeted(|mut theirs| theirs.write_all(b"REJECTED EXTERNAL\r\n").unwrap()).unwrap_err();
        assert!(error.to_string().contains("REJECTED"), "{error}");
    }

    #[test]
    fn one_who_goes_away_is_an_error() {
        let leave = |mut theirs: UnixStream| {
            theirs.write_all(b"OK 00\r\n").unwrap();
            // The last of the greeting; what comes after it is not read.
            let _ = theirs.read(&mut [0; 64]);
        };
        let mut connection = greeted(leave).unwrap();
        let failure = connection.call(&GET_UNIT, Writer::default()).unwrap_err();
        assert!(matches!(failure, Failure::Io(_)), "{failure}");
    }
}
