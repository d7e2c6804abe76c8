//! Whether anybody has been told of an object: a caller that gave up has not (row A3).

use std::sync::atomic::{AtomicU8, Ordering};

use crate::store::Bell;

const CLAIMED: u8 = 0;
const UNCLAIMED: u8 = 1;
const GIVEN_UP: u8 = 2;

/// Of a pod or container. It begins as claimed; one whose callers have all gone is unclaimed until the same is asked for again
/// or it is given up, whichever comes first.
#[derive(Debug, Default)]
pub struct Claim {
    state: AtomicU8,
    /// Rung when it is hidden or shown.
    bell: Bell,
}

impl Claim {
    /// A claim that rings `bell` when it changes.
    #[must_use]
    pub fn ringing(bell: Bell) -> Self {
        Self {
            state: AtomicU8::new(CLAIMED),
            bell,
        }
    }

    /// Nobody has been told of it.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        self.state.load(Ordering::Acquire) != CLAIMED
    }

    /// Has nobody see it until it is claimed.
    pub fn hide(&self) {
        self.state.store(UNCLAIMED, Ordering::Release);
        self.bell.ring();
    }

    /// Whether somebody may be told of it now; false once it is given up.
    pub fn claim(&self) -> bool {
        let claimed = self
            .state
            .compare_exchange(UNCLAIMED, CLAIMED, Ordering::AcqRel, Ordering::Acquire);
        self.bell.ring();
        claimed.map_or_else(|state| state == CLAIMED, |_| true)
    }

    /// Has everybody see it again, whatever has become of it.
    pub fn show(&self) {
        self.state.store(CLAIMED, Ordering::Release);
        self.bell.ring();
    }

    /// Whether it is to be removed now, because nobody has claimed it.
    pub fn give_up(&self) -> bool {
        let given_up = self
            .state
            .compare_exchange(UNCLAIMED, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire);
        given_up.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_is_either_claimed_or_given_up() {
        let claim = Claim::default();
        assert!(!claim.is_hidden() && claim.claim() && !claim.give_up());
        claim.hide();
        assert!(claim.is_hidden() && claim.claim());
        assert!(!claim.is_hidden() && !claim.give_up());
        claim.hide();
        assert!(claim.give_up());
        assert!(claim.is_hidden() && !claim.claim() && !claim.give_up());
        claim.show();
        assert!(!claim.is_hidden() && claim.claim());
    }
}
