//! How the other side says that a stream has ended.

use serde::Deserialize;

/// The end of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// An exec's exit code; 0 as well for an attach that is over.
    Code(i32),
    /// It could not be run or seen to its end.
    Failed(String),
}

/// `metav1.Status`, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    status: String,
    message: String,
    reason: String,
    details: Option<Details>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    causes: Vec<Cause>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
    message: String,
}

impl Ended {
    /// Reads what came on the error stream.
    pub fn parse(text: &[u8]) -> Self {
        let Ok(status) = serde_json::from_slice::<Status>(text) else {
            return Self::Failed(String::from_utf8_lossy(text).trim().to_owned());
        };
        if status.status == "Success" {
            return Self::Code(0);
        }
        let causes = status.details.unwrap_or_default().causes;
        let code = causes
            .iter()
            .find(|cause| cause.reason == "ExitCode")
            .and_then(|cause| cause.message.parse().ok());
        match code {
            Some(code) if status.reason == "NonZeroExitCode" => Self::Code(code),
            _ => Self::Failed(status.message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_a_code_or_a_message() {
        assert_eq!(Ended::parse(br#"{"metadata":{},"status":"Success"}"#), Ended::Code(0));
        let text = br#"{"status":"Failure","message":"m","reason":"NonZeroExitCode",
            "details":{"causes":[{"reason":"ExitCode","message":"42"}]}}"#;
        assert_eq!(Ended::parse(text), Ended::Code(42));
        let text = br#"{"status":"Failure","message":"no such command","reason":"InternalError"}"#;
        assert_eq!(Ended::parse(text), Ended::Failed("no such command".into()));
        assert_eq!(Ended::parse(b"old text\n"), Ended::Failed("old text".into()));
    }
}
