//! Clients that have not said yet what they want. Half-open connections can neither use up descriptors nor keep others
//! out: when there are too many, who has waited longest must go.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// Most clients at a time.
const MOST: usize = 128;

/// Where they wait.
#[derive(Debug, Default)]
pub struct Lobby(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// In the order in which they came.
    clients: VecDeque<(u64, CancellationToken)>,
}

/// One client's place, free when it is dropped.
#[derive(Debug)]
pub struct Place {
    lobby: Arc<Lobby>,
    number: u64,
    turned_out: CancellationToken,
}

impl Lobby {
    /// A place for one more.
    pub fn enter(self: &Arc<Self>) -> Place {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.clients.len() >= MOST
            && let Some((_, oldest)) = waiting.clients.pop_front()
        {
            oldest.cancel();
        }
        let (number, turned_out) = (waiting.next, CancellationToken::new());
        waiting.next += 1;
        waiting.clients.push_back((number, turned_out.clone()));
        Place {
            lobby: self.clone(),
            number,
            turned_out,
        }
    }
}

impl Place {
    /// Completes when somebody else needs the place.
    pub async fn turned_out(&self) {
        self.turned_out.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.lobby.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(at) = waiting
            .clients
            .binary_search_by_key(&self.number, |(number, _)| *number)
        {
            waiting.clients.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_waited_longest_makes_room() {
        let lobby = Arc::<Lobby>::default();
        let mut places: Vec<_> = (0..MOST).map(|_| lobby.enter()).collect();
        drop(places.remove(5));
        places.push(lobby.enter());
        assert!(!places.iter().any(|place| place.turned_out.is_cancelled()));
        let last = lobby.enter();
        let out: Vec<_> = places.iter().filter(|place| place.turned_out.is_cancelled()).collect();
        assert_eq!(out.iter().map(|place| place.number).collect::<Vec<_>>(), [0]);
        drop((places, last));
        assert!(lobby.0.lock().unwrap().clients.is_empty());
    }
}
