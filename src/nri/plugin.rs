//! One plugin: who it is, what it wants to hear, and how it is asked.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use prost::Message;
use tokio::{net::UnixStream, sync::mpsc};
use tokio_util::task::TaskTracker;
use wharf_proto::nri::{
    ConfigureRequest, ConfigureResponse, Container, CreateContainerRequest, Empty, Event, PodSandbox,
    RegisterPluginRequest, StateChangeEvent,
};

use super::{
    Limits,
    connection::{Connection, Fault, Incoming, code},
    event,
};

/// The version of NRI that is spoken here.
const NRI_VERSION: &str = "v0.12.0";

/// A plugin's place in the order, and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Two digits; lower ones are asked first.
    pub index: String,
    /// Its name without them.
    pub base: String,
}

impl Identity {
    /// Of a plugin's file, which is called `NN-name`.
    ///
    /// # Errors
    /// What is wrong with the name.
    pub fn parse(file: &str) -> Result<Self, String> {
        let (index, base) = file
            .split_once('-')
            .ok_or_else(|| format!("{file:?} is not called NN-name"))?;
        Self::new(index, base)
    }

    /// As a plugin gives it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(index: &str, base: &str) -> Result<Self, String> {
        if index.len() != 2 || !index.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("plugin index {index:?} is not two digits"));
        }
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
        if base.is_empty() || !base.chars().all(known) {
            return Err(format!(
                "plugin name {base:?} is not one or more letters, digits, or any of \"-_.+\""
            ));
        }
        Ok(Self {
            index: index.to_owned(),
            base: base.to_owned(),
        })
    }

    /// As the log and other plugins know it.
    pub fn name(&self) -> String {
        format!("{}-{}", self.index, self.base)
    }
}

/// A plugin that has registered and said what it wants to hear.
#[derive(Debug)]
pub struct Plugin {
    /// Who it is.
    pub identity: Identity,
    connection: Arc<Connection>,
    /// Bits of the events that it wants to hear of.
    events: i32,
    /// Bits of those that it hears of by `StateChange`.
    by_state_change: AtomicI32,
    limit: Duration,
}

impl Plugin {
    /// Lets the plugin at the other end of `socket` register, and configures it. `launched` are name and configuration of
    /// one that the daemon has started. Returns it with its later requests.
    ///
    /// # Errors
    /// What went wrong; its socket is then closed.
    pub async fn admit(
        socket: UnixStream,
        launched: Option<(Identity, String)>,
        limits: &Limits,
        tasks: &TaskTracker,
    ) -> Result<(Arc<Self>, mpsc::Receiver<Incoming>), String> {
        let (connection, mut incoming) = Connection::start(socket, tasks);
        match handshake(&connection, &mut incoming, launched, limits).await {
            Ok((identity, events)) => {
                let plugin = Self {
                    identity,
                    connection,
                    events,
                    by_state_change: AtomicI32::new(0),
                    limit: limits.request,
                };
                Ok((Arc::new(plugin), incoming))
            }
            Err(error) => {
                connection.close();
                Err(error)
            }
        }
    }

    /// `NN-name`.
    pub fn name(&self) -> String {
        self.identity.name()
    }

    /// The plugin's process; 0 when it is not known.
    pub fn pid(&self) -> i32 {
        self.connection.pid
    }

    /// It wants to hear of this.
    pub fn wants(&self, event: Event) -> bool {
        self.events & event::bit(event) != 0
    }

    /// Bits of all that it wants to hear of.
    pub fn events(&self) -> i32 {
        self.events
    }

    /// Its socket is closed.
    pub fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// Waits until its socket is closed.
    pub async fn closed(&self) {
        self.connection.closed().await;
    }

    /// Closes its socket: it is not asked any more, and ends if the daemon has started it.
    pub fn close(&self) {
        self.connection.close();
    }

    /// Asks it by the method of this name.
    ///
    /// # Errors
    /// When it says no, or nothing in time.
    pub async fn ask<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<A, Fault> {
        self.connection.ask(method, request, self.limit).await
    }

    /// As [`Plugin::ask`], with another limit.
    ///
    /// # Errors
    /// As there.
    pub async fn ask_within<A: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
        limit: Duration,
    ) -> Result<A, Fault> {
        self.connection.ask(method, request, limit).await
    }

    /// Tells it of something that needs no answer.
    ///
    /// # Errors
    /// When it says no, or nothing in time.
    pub async fn tell(&self, event: Event, pod: &PodSandbox, container: Option<&Container>) -> Result<(), Fault> {
        let (pod, container) = (Some(pod.clone()), container.cloned());
        let bit = event::bit(event);
        if self.by_state_change.load(Ordering::Relaxed) & bit == 0 {
            // Every event's request is one of a pod and a container, or of a pod alone.
            let request = CreateContainerRequest {
                pod: pod.clone(),
                container: container.clone(),
            };
            match self.ask::<Empty>(event::method(event), &request).await {
                Err(fault) if fault.is_unimplemented() && event::was_state_change(event) => {
                    self.by_state_change.fetch_or(bit, Ordering::Relaxed);
                }
                other => return other.map(drop),
            }
        }
        let change = StateChangeEvent {
            event: event.into(),
            pod,
            container,
        };
        self.ask::<Empty>("StateChange", &change).await.map(drop)
    }

    /// Answers one of its requests.
    pub async fn answer<A: Message>(&self, request: &Incoming, answer: Result<A, (i32, String)>) {
        self.connection.answer(request, answer).await;
    }
}

/// Registers and configures the plugin; its name and events.
async fn handshake(
    connection: &Connection,
    incoming: &mut mpsc::Receiver<Incoming>,
    launched: Option<(Identity, String)>,
    limits: &Limits,
) -> Result<(Identity, i32), String> {
    let (known, config) = match launched {
        Some((identity, config)) => (Some(identity), config),
        None => (None, String::new()),
    };
    let registered = tokio::time::timeout(limits.registration, register(connection, incoming, known)).await;
    let identity =
        registered.map_err(|_| format!("it did not register within {} s", limits.registration.as_secs()))??;
    let millis = |limit: Duration| i64::try_from(limit.as_millis()).unwrap_or(i64::MAX);
    let request = ConfigureRequest {
        config,
        runtime_name: "wharf".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        registration_timeout: millis(limits.registration),
        request_timeout: millis(limits.request),
        nri_version: NRI_VERSION.to_owned(),
    };
    let answer: ConfigureResponse = connection
        .ask("Configure", &request, limits.request)
        .await
        .map_err(|fault| format!("configure plugin {}: {fault}", identity.name()))?;
    match answer.events {
        0 => Ok((identity, event::ALL)),
        events if events & !event::ALL != 0 => Err(format!(
            "plugin {} asks for events that are not known (mask {:#x})",
            identity.name(),
            events & !event::ALL
        )),
        events => Ok((identity, events)),
    }
}

/// Waits until the plugin registers. Nothing else can be asked for before.
async fn register(
    connection: &Connection,
    incoming: &mut mpsc::Receiver<Incoming>,
    known: Option<Identity>,
) -> Result<Identity, String> {
    loop {
        let request = incoming.recv().await.ok_or("it has gone before it registered")?;
        if request.method != "RegisterPlugin" {
            let refusal = (code::FAILED_PRECONDITION, "register first".to_owned());
            connection.answer::<Empty>(&request, Err(refusal)).await;
            continue;
        }
        let asked = match RegisterPluginRequest::decode(request.content.as_slice()) {
            Ok(asked) => match known {
                Some(known) => Ok(known),
                None => Identity::new(&asked.plugin_idx, &asked.plugin_name),
            },
            Err(error) => Err(error.to_string()),
        };
        return match asked {
            Ok(identity) => {
                connection.answer(&request, Ok(Empty {})).await;
                Ok(identity)
            }
            Err(error) => {
                let refusal = (code::INVALID_ARGUMENT, error.clone());
                connection.answer::<Empty>(&request, Err(refusal)).await;
                Err(error)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_two_digits_and_a_word() {
        let parsed = Identity::parse("10-device-injector").unwrap();
        assert_eq!((parsed.index.as_str(), parsed.base.as_str()), ("10", "device-injector"));
        assert_eq!(parsed.name(), "10-device-injector");
        for bad in ["logger", "1-logger", "1a-logger", "10-", "10-a b", "100-x", "10-ä"] {
            assert!(Identity::parse(bad).is_err(), "{bad}");
        }
    }
}
