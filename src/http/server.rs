//! Accepts connections and answers on them until told to stop. Connections that say nothing, and those whose other end
//! is gone without a word, don't stay.

mod handover;

use std::{convert::Infallible, io::ErrorKind, pin::Pin, task::Poll, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Method, Version},
};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioTimer;
use nix::sys::socket::{
    setsockopt,
    sockopt::{KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval, TcpUserTimeout},
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use self::handover::{Handover, Socket};
use super::live::{self, Source};

/// A request's head must be whole within this time, and a connection may be idle for as long. Longer than the idle
/// time of the usual load balancers (60 s), so that it is they who close.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// Wait after a failure to accept, such as too many open files: trying again at once would not help.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(500);

/// When the other end of a connection is taken for dead. The kernel sees to it.
#[derive(Clone, Copy, Debug)]
pub struct PeerTimeouts {
    /// What was sent must be acknowledged within this time.
    pub acknowledge: Duration,
    /// After so long without a word from it, it is asked. In whole seconds, at least one.
    pub ask_after: Duration,
}

impl Default for PeerTimeouts {
    fn default() -> Self {
        Self {
            acknowledge: Duration::from_secs(30),
            ask_after: Duration::from_secs(30),
        }
    }
}

impl PeerTimeouts {
    /// Has the kernel see to it. Where that fails, peers that are gone stay a little longer.
    pub(super) fn set(self, stream: &TcpStream) {
        let milliseconds = u32::try_from(self.acknowledge.as_millis()).unwrap_or(u32::MAX);
        let seconds = u32::try_from(self.ask_after.as_secs()).unwrap_or(u32::MAX).max(1);
        let _ = setsockopt(stream, TcpUserTimeout, &milliseconds);
        let _ = setsockopt(stream, KeepAlive, &true);
        let _ = setsockopt(stream, TcpKeepIdle, &seconds);
        let _ = setsockopt(stream, TcpKeepInterval, &seconds.div_ceil(3));
        let _ = setsockopt(stream, TcpKeepCount, &3);
    }

    /// Leaves it to the kernel's own rules, by which a peer may be slow for as long as it answers.
    pub(super) fn be_patient(stream: &TcpStream) {
        let _ = setsockopt(stream, TcpUserTimeout, &0);
    }
}

/// Serves until `stopping` is cancelled; then accepts nothing new and returns when every connection has answered what
/// it was asked. Dropping the future closes all connections.
pub async fn serve(listener: TcpListener, router: Router, stopping: CancellationToken) {
    serve_with(listener, router, PeerTimeouts::default(), stopping).await;
}

/// As [`serve`], with other timeouts.
pub async fn serve_with(listener: TcpListener, router: Router, peers: PeerTimeouts, stopping: CancellationToken) {
    // A task that returns something goes on as another one, which needs much less.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            Some(ended) = connections.join_next() => {
                go_on(&mut connections, ended.ok().flatten(), peers, &stopping);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                // Small frames are to leave at once; where this fails, they leave a little later.
                let _ = stream.set_nodelay(true);
                peers.set(&stream);
                connections.spawn(connection(stream, router.clone(), stopping.clone()));
            }
            Err(error) if is_of_one_connection(error.kind()) => {}
            Err(error) => {
                tracing::error!(error = %error, "connections can't be accepted");
                let _ = tokio::time::timeout(ACCEPT_BACKOFF, stopping.cancelled()).await;
            }
        }
    }
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        go_on(&mut connections, ended.ok().flatten(), peers, &stopping);
    }
}

/// Whether an error of accept is the fault of the connection, and says nothing about the next one.
fn is_of_one_connection(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
    )
}

/// A connection on which an answer is to be sent to its end, and nothing else any more.
struct Leaving {
    stream: TcpStream,
    source: Source,
}

fn go_on(
    connections: &mut JoinSet<Option<Leaving>>,
    leaving: Option<Leaving>,
    peers: PeerTimeouts,
    stopping: &CancellationToken,
) {
    if let Some(Leaving { stream, source }) = leaving {
        let sending = live::send(stream, source, peers, stopping.clone());
        connections.spawn(async {
            sending.await;
            None
        });
    }
}

async fn connection(stream: TcpStream, router: Router, stopping: CancellationToken) -> Option<Leaving> {
    let handover = Handover::default();
    let service = service_fn(|request: Request<Incoming>| {
        // Older clients know no chunks.
        let may_leave = request.version() == Version::HTTP_11 && request.method() != Method::HEAD;
        let (router, handover) = (router.clone(), handover.clone());
        async move {
            let mut response = router.oneshot(request.map(Body::new)).await?;
            if may_leave {
                handover.prepare(&mut response);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(Socket::new(stream, handover.clone()), service);
    let mut told = false;
    let ended = loop {
        let served = std::future::poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(outcome) => Poll::Ready(Err(outcome)),
            Poll::Pending => handover.take().map_or(Poll::Pending, |source| Poll::Ready(Ok(source))),
        });
        tokio::select! {
            ended = served => break ended,
            () = stopping.cancelled(), if !told => {
                Pin::new(&mut connection).graceful_shutdown();
                told = true;
            }
        }
    };
    match ended {
        Ok(source) => Some(Leaving {
            stream: connection.into_parts().io.into_inner(),
            source,
        }),
        Err(outcome) => {
            if let Err(error) = outcome {
                // Mostly peers that went away.
                tracing::debug!(error = %error, "a connection ended");
            }
            None
        }
    }
}
