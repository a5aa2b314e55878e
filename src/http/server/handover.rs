//! Taking a connection out of hyper's hands between the head of an answer and its body.
//!
//! The body that hyper is given says nothing. Once hyper has asked it, the head is in hyper's buffer; once hyper then
//! flushes the connection, the head is in the kernel's, and the connection can be taken.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::Response,
};
use hyper::{
    body::{Body as HttpBody, Frame},
    rt::{Read, ReadBufCursor, Write},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::http::live::{Live, Source};

/// Of one connection.
#[derive(Clone, Default)]
pub(super) struct Handover(Arc<State>);

#[derive(Default)]
struct State {
    source: Mutex<Option<Source>>,
    /// The head is in hyper's buffer, or was sent.
    begun: AtomicBool,
    /// The head was sent.
    due: AtomicBool,
}

impl Handover {
    /// Has the head of a live answer sent by hyper, and keeps the rest.
    pub(super) fn prepare(&self, response: &mut Response) {
        let source = response.extensions_mut().remove::<Live>().and_then(|live| live.take());
        if let Some(source) = source {
            *self.0.source.lock().unwrap_or_else(PoisonError::into_inner) = Some(source);
            let headers = response.headers_mut();
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            *response.body_mut() = Body::new(Silence(self.clone()));
        }
    }

    /// The rest of the answer, when it is time to send it.
    pub(super) fn take(&self) -> Option<Source> {
        if !self.0.due.load(Ordering::Relaxed) {
            return None;
        }
        self.0.source.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A body that hyper waits for.
struct Silence(Handover);

impl HttpBody for Silence {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.0.begun.store(true, Ordering::Relaxed);
        Poll::Pending
    }
}

/// A connection whose flushes are seen.
pub(super) struct Socket {
    stream: TokioIo<TcpStream>,
    handover: Handover,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, handover: Handover) -> Self {
        Self {
            stream: TokioIo::new(stream),
            handover,
        }
    }

    pub(super) fn into_inner(self) -> TcpStream {
        self.stream.into_inner()
    }
}

impl Read for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        let state = &self.handover.0;
        if flushed.is_ready() && state.begun.load(Ordering::Relaxed) {
            state.due.store(true, Ordering::Relaxed);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }
}
