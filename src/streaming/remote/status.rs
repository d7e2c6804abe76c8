//! How a session ended, as clients read it: `metav1.Status` in JSON since v4, a text for errors before.

use serde_json::{Value, json};

/// The outcome of a session.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command ended with this code.
    Exit(i32),
    /// An attach is over: how the container ended is told by its status.
    Detached,
    /// It could not be run or seen to its end.
    Failed(String),
}

impl Outcome {
    /// What goes onto the error stream; empty is nothing.
    pub fn message(&self, json: bool) -> Vec<u8> {
        if json {
            return self.status().to_string().into_bytes();
        }
        match self {
            Self::Exit(0) | Self::Detached => Vec::new(),
            Self::Exit(code) => text(*code).into_bytes(),
            Self::Failed(message) => message.clone().into_bytes(),
        }
    }

    fn status(&self) -> Value {
        match self {
            Self::Exit(0) | Self::Detached => json!({"metadata": {}, "status": "Success"}),
            Self::Exit(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": text(*code),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed(message) => json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "InternalError",
                "details": {"causes": [{"message": message}]},
                "code": 500,
            }),
        }
    }
}

/// Clients know this sentence: kubectl shows it as it is.
fn text(code: i32) -> String {
    format!("command terminated with non-zero exit code: exit code {code}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_a_cause() {
        let status: Value = serde_json::from_slice(&Outcome::Exit(42).message(true)).unwrap();
        assert_eq!(status["status"], "Failure");
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(
            status["details"]["causes"],
            json!([{"reason": "ExitCode", "message": "42"}])
        );
    }

    #[test]
    fn success_is_told_since_v4_only() {
        assert_eq!(
            Outcome::Exit(0).message(true),
            br#"{"metadata":{},"status":"Success"}"#.to_vec()
        );
        assert!(Outcome::Exit(0).message(false).is_empty());
        assert!(Outcome::Detached.message(false).is_empty());
        assert!(!Outcome::Exit(1).message(false).is_empty());
    }
}
