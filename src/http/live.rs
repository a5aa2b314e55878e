//! Answers that go on for as long as somebody reads them. There may be ten thousand of them at a time, so their
//! connections leave hyper once the head is sent (see `server`): what hyper keeps ready for the next request, some
//! 20 KiB, is let go of, and what remains is the socket and where the bytes come from.

use std::{
    io::{ErrorKind, IoSlice},
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    response::{IntoResponse, Response},
};
use bytes::Buf;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use nix::sys::socket::{setsockopt, sockopt::SndBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::server::PeerTimeouts;
use crate::journal::ReadError;

/// Bytes that are handed to the kernel at once.
const PIECE: usize = 64 << 10;
/// A reader must take a piece within this time.
const STALLED: Duration = Duration::from_mins(10);
/// What the kernel keeps for a reader that is slower than its build (it doubles this for its own needs). Left alone it
/// would keep megabytes for each.
const SEND_BUFFER: usize = 128 << 10;
/// When the server stops, a reader that is about to be sent something has this long to take it.
const LAST_PIECE: Duration = Duration::from_secs(2);

/// Why an answer ends early. The connection is cut, so that what was sent doesn't look whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cut {
    #[error("the server is stopping")]
    Stopping,
    #[error("the journal can't be read")]
    Read(#[from] ReadError),
}

/// Where the bytes of an answer come from.
pub(super) type Source = BoxStream<'static, Result<Bytes, Cut>>;

/// The rest of an answer, as an extension of its head. Whoever is first takes it: the server that sends it, or the body.
#[derive(Clone)]
pub(super) struct Live(Arc<Mutex<Option<Source>>>);

impl Live {
    pub(super) fn take(&self) -> Option<Source> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// An answer of these bytes.
pub(super) fn respond(head: impl IntoResponse, source: Source) -> Response {
    let live = Live(Arc::new(Mutex::new(Some(source))));
    let mut response = head.into_response();
    response.extensions_mut().insert(live.clone());
    let rest = stream::once(async move { live.take().unwrap_or_else(|| stream::empty().boxed()) });
    *response.body_mut() = Body::from_stream(rest.flatten());
    response
}

/// Sends the rest of an answer whose head said that it comes in chunks (RFC 9112, section 7.1), and closes.
pub(super) async fn send(socket: TcpStream, mut source: Source, peers: PeerTimeouts, stopping: CancellationToken) {
    // Where this fails, the kernel keeps more.
    let _ = setsockopt(&socket, SndBuf, &SEND_BUFFER);
    loop {
        let next = tokio::select! {
            biased;
            next = source.next() => next,
            () = gone(&socket) => return,
        };
        let sent = match next {
            Some(Ok(bytes)) => chunks(&socket, bytes, peers, &stopping).await,
            // Without the last chunk the answer isn't whole.
            Some(Err(_)) => return,
            None => {
                // A reader that is gone by now misses nothing that it wanted.
                let _ = write(&socket, &b"0\r\n\r\n"[..], peers, &stopping).await;
                // What is unread when a socket is closed makes the kernel throw away what is unsent.
                let _ = tokio::time::timeout(Duration::ZERO, gone(&socket)).await;
                return;
            }
        };
        if sent.is_none() {
            return;
        }
    }
}

/// Returns when the other end has closed the connection. What it may say is not for anybody.
async fn gone(socket: &TcpStream) {
    let mut ignored = [0; 256];
    while socket.readable().await.is_ok() {
        match socket.try_read(&mut ignored) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// `None` when the connection is of no more use.
async fn chunks(socket: &TcpStream, mut bytes: Bytes, peers: PeerTimeouts, stopping: &CancellationToken) -> Option<()> {
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(PIECE));
        let size = format!("{:x}\r\n", piece.len());
        let chunk = size.as_bytes().chain(piece).chain(&b"\r\n"[..]);
        write(socket, chunk, peers, stopping).await?;
    }
    Some(())
}

async fn write(socket: &TcpStream, chunk: impl Buf, peers: PeerTimeouts, stopping: &CancellationToken) -> Option<()> {
    let mut writing = std::pin::pin!(write_all(socket, chunk));
    if let Poll::Ready(written) = futures::poll!(&mut writing) {
        return written.ok();
    }
    // The kernel takes a reader for dead that doesn't read for so long; but it may only be slow.
    PeerTimeouts::be_patient(socket);
    let overdue = async {
        tokio::select! {
            () = tokio::time::sleep(STALLED) => {}
            () = stopping.cancelled() => tokio::time::sleep(LAST_PIECE).await,
        }
    };
    let written = tokio::select! {
        written = writing => written.ok(),
        () = overdue => None,
    };
    peers.set(socket);
    written
}

async fn write_all(socket: &TcpStream, mut chunk: impl Buf) -> std::io::Result<()> {
    while chunk.has_remaining() {
        let mut slices = [IoSlice::new(&[]); 3];
        let count = chunk.chunks_vectored(&mut slices);
        match socket.try_write_vectored(&slices[..count]) {
            Ok(written) => chunk.advance(written),
            Err(error) if error.kind() == ErrorKind::WouldBlock => socket.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
