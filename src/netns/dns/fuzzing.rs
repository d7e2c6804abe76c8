//! A door for the fuzz target (fuzz/).

use super::message::{self, Outcome, Record};

/// A message from a pod.
pub fn question(bytes: &[u8]) {
    if let Ok(question) = message::question(bytes) {
        let _ = message::reversed(&question.name);
        let records = [Record::Name(question.name), Record::Address([1, 2, 3, 4].into())];
        let answer = message::answer(bytes, question.end, Outcome::Answered, &records, message::UDP);
        assert!(answer.len() <= message::UDP.max(question.end));
        assert!(message::question(&answer).is_err(), "an answer is no question");
    }
}
