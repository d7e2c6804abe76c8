//! What a face has made of a state, kept as long as the state is the newest.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// A state as bytes, made when they are first wanted: a list of a thousand objects is asked for many times before a few of
/// them change. Locked for as long as it takes to make one object's bytes.
#[derive(Debug)]
pub struct Rendering<S>(Mutex<Option<(S, Bytes)>>);

/// Something that is the same state as another, without a look at its content.
pub trait Same {
    /// Whether it is.
    fn same(&self, other: &Self) -> bool;
}

impl<T> Same for Arc<T> {
    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(self, other)
    }
}

impl<T: Same> Same for Option<T> {
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Some(one), Some(other)) => one.same(other),
            (None, None) => true,
            _ => false,
        }
    }
}

impl<A: Same, B: Same, C: Same> Same for (A, B, C) {
    fn same(&self, other: &Self) -> bool {
        self.0.same(&other.0) && self.1.same(&other.1) && self.2.same(&other.2)
    }
}

impl<S> Default for Rendering<S> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<S: Same + Clone> Rendering<S> {
    /// What `render` makes of `state`. It must always make the same of the same state.
    pub fn of(&self, state: &S, render: impl FnOnce(&S) -> Vec<u8>) -> Bytes {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((of, bytes)) if of.same(state) => bytes.clone(),
            _ => {
                let bytes = Bytes::from(render(state));
                *kept = Some((state.clone(), bytes.clone()));
                bytes
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_rendered_once_and_a_new_one_anew() {
        let rendering = Rendering::default();
        let (first, second) = (Arc::new(1_u8), Arc::new(2_u8));
        assert_eq!(rendering.of(&first, |state| vec![**state]), [1].as_slice());
        assert_eq!(rendering.of(&first, |_| panic!("it is there")), [1].as_slice());
        assert_eq!(rendering.of(&second, |state| vec![**state]), [2].as_slice());
    }

    #[test]
    fn states_together_are_the_same_if_each_is() {
        let (a, b, c) = (Arc::new(1), Arc::new("b"), Arc::new('c'));
        let all = (a.clone(), b.clone(), c.clone());
        assert!(all.same(&all.clone()));
        // Equal, and another one.
        assert!(!all.same(&(Arc::new(1), b, c)));
    }
}
