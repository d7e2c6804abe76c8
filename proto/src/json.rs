//! The canonical proto3 JSON form of messages, for `-o json`, for verbose status and for humans who read records.

use std::{
    collections::{BTreeSet, HashSet},
    sync::LazyLock,
};

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, SerializeOptions};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin")).as_slice())
        .expect("the descriptors were written by this crate's own build script")
});

/// What can go wrong when a message is turned into JSON.
#[derive(Debug)]
pub enum Error {
    /// No message of that full name exists in the compiled protocol files.
    UnknownMessage(String),
    /// The bytes are not a message of that type.
    Decode(prost::DecodeError),
    /// The JSON serializer refused.
    Json(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UnknownMessage(name) => write!(f, "no message named {name}"),
            Self::Decode(error) => write!(f, "decode message: {error}"),
            Self::Json(error) => write!(f, "write message as JSON: {error}"),
        }
    }
}

impl std::error::Error for Error {}

/// The JSON form of `message`, whose full protobuf name is `name` (for example `runtime.v1.ContainerStatus`).
///
/// Field names are camelCase, enums are names, 64-bit integers are strings (protobuf's JSON mapping); fields with
/// default values are written only if `defaults` is set.
///
/// # Errors
/// When no such message exists or `message` is of another type than `name`.
pub fn to_value<M: Message>(name: &str, message: &M, defaults: bool) -> Result<serde_json::Value, Error> {
    let descriptor = POOL
        .get_message_by_name(name)
        .ok_or_else(|| Error::UnknownMessage(name.to_owned()))?;
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).map_err(Error::Decode)?;
    let options = SerializeOptions::new().skip_default_fields(!defaults);
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| Error::Json(error.to_string()))
}

/// The JSON form of a request's bytes, by the path of the gRPC method that it is for (`/runtime.v1.RuntimeService/Version`).
/// `None` where there is no such method, or the bytes are no such request. It has all that the request has: secrets too.
#[must_use]
pub fn request(path: &str, bytes: &[u8]) -> Option<serde_json::Value> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let service = POOL.get_service_by_name(service)?;
    let input = service.methods().find(|known| known.name() == method)?.input();
    let dynamic = DynamicMessage::decode(input, bytes).ok()?;
    let options = SerializeOptions::new();
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .ok()
}

/// The fields, as `Message.field`, of all messages that a request of the gRPC service can hold, for a check that none is
/// forgotten. Empty where there is no such service.
#[must_use]
pub fn fields_of_requests(service: &str) -> BTreeSet<String> {
    let service = POOL.get_service_by_name(service);
    let mut open: Vec<_> = service
        .iter()
        .flat_map(|known| known.methods())
        .map(|method| method.input())
        .collect();
    let (mut seen, mut out) = (HashSet::new(), BTreeSet::new());
    while let Some(message) = open.pop() {
        // A map's entries are messages too, which nobody thinks of as such.
        if !seen.insert(message.full_name().to_owned()) {
            continue;
        }
        for field in message.fields() {
            if !message.is_map_entry() {
                out.insert(format!("{}.{}", message.name(), field.name()));
            }
            if let Kind::Message(inner) = field.kind() {
                open.push(inner);
            }
        }
    }
    out
}

/// Reads the JSON form of the message named `name`; the inverse of [`to_value`].
///
/// # Errors
/// When no such message exists, or the JSON has a field or value that the message has not.
pub fn from_str<M: Message + Default>(name: &str, text: &str) -> Result<M, Error> {
    let descriptor = POOL
        .get_message_by_name(name)
        .ok_or_else(|| Error::UnknownMessage(name.to_owned()))?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let dynamic =
        DynamicMessage::deserialize(descriptor, &mut reader).map_err(|error| Error::Json(error.to_string()))?;
    reader.end().map_err(|error| Error::Json(error.to_string()))?;
    M::decode(dynamic.encode_to_vec().as_slice()).map_err(Error::Decode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri;

    #[test]
    fn a_config_survives_the_way_through_json() {
        let config = cri::PodSandboxConfig {
            hostname: "h".into(),
            metadata: Some(cri::PodSandboxMetadata {
                name: "n".into(),
                attempt: 3,
                ..Default::default()
            }),
            ..Default::default()
        };
        let value = to_value("runtime.v1.PodSandboxConfig", &config, false).unwrap();
        assert_eq!(value["metadata"]["attempt"], 3);
        let back: cri::PodSandboxConfig = from_str("runtime.v1.PodSandboxConfig", &value.to_string()).unwrap();
        assert_eq!(back, config);
    }
}
