//! Tells whether anything has changed, without a look at what may have.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// Rung by whoever changes one of the things that it is for, after the change. A clone is the same one.
#[derive(Debug, Clone, Default)]
pub struct Bell(Arc<AtomicU64>);

impl Bell {
    /// Something has changed.
    pub fn ring(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    fn rung(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// What was made of things that a [`Bell`] is for, as long as it has not been rung since.
#[derive(Debug)]
pub struct Kept<T>(Mutex<Option<(u64, Arc<T>)>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Kept<T> {
    /// What `make` makes of things as they are now. Locked while it does; others who want it wait for it.
    pub fn of(&self, bell: &Bell, make: impl FnOnce() -> T) -> Arc<T> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Before anything is looked at: what changes meanwhile rings afterwards, and what is made is not good for long.
        let rung = bell.rung();
        match &*kept {
            Some((then, made)) if *then == rung => Arc::clone(made),
            _ => {
                let made = Arc::new(make());
                *kept = Some((rung, Arc::clone(&made)));
                made
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_is_kept_until_the_bell_rings() {
        let (bell, kept) = (Bell::default(), Kept::default());
        assert_eq!(*kept.of(&bell, || 1), 1);
        assert_eq!(*kept.of(&bell, || panic!("it is there")), 1);
        bell.clone().ring();
        assert_eq!(*kept.of(&bell, || 2), 2);
        // A change while something is made.
        bell.ring();
        let made = kept.of(&bell, || {
            bell.ring();
            3
        });
        assert_eq!((*made, *kept.of(&bell, || 4)), (3, 4));
    }
}
