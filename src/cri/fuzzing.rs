//! A door for the fuzz target (fuzz/).

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead as _, ReadBuf};

use super::authority::Lenient;

/// Bytes of a connection, as they are handed to HTTP/2: as many as came, and in pieces of any size.
pub fn authority(bytes: &[u8]) {
    let mut connection = Lenient::new(bytes);
    let mut context = Context::from_waker(Waker::noop());
    let mut seen = 0;
    let mut piece = [0; 97];
    loop {
        let mut buffer = ReadBuf::new(&mut piece);
        match Pin::new(&mut connection).poll_read(&mut context, &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => break,
            Poll::Ready(Ok(())) => seen += buffer.filled().len(),
            Poll::Ready(Err(_)) => return,
            Poll::Pending => panic!("a slice is always ready"),
        }
    }
    assert!(seen <= bytes.len(), "more was handed on than came");
}
