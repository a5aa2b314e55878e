//! Accepts connections and answers on them until told to stop. Connections that say nothing, and those whose other end
//! is gone without a word, don't stay.

use std::{io::ErrorKind, time::Duration};

use axum::{Router, body::Body};
use hyper::{Request, body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// A request's head must be whole within this time, and a connection may be idle for as long. Longer than the idle
/// time of the usual load balancers (60 s), so that it is they who close.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// Sent bytes must be acknowledged within this many milliseconds.
const ACKNOWLEDGE_MS: u32 = 30_000;
/// Wait after a failure to accept, such as too many open files: trying again at once would not help.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(500);

/// Serves until `stopping` is cancelled; then accepts nothing new and returns when every connection has answered what
/// it was asked. Dropping the future closes all connections.
pub async fn serve(listener: TcpListener, router: Router, stopping: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
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
    while connections.join_next().await.is_some() {}
}

/// Whether an error of accept is the fault of the connection, and says nothing about the next one.
fn is_of_one_connection(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
    )
}

async fn connection(stream: TcpStream, router: Router, stopping: CancellationToken) {
    // Small frames are to leave at once. Where these fail, frames leave a little later, and peers that are gone stay a
    // little longer.
    let _ = stream.set_nodelay(true);
    let _ = setsockopt(&stream, TcpUserTimeout, &ACKNOWLEDGE_MS);
    let service = router.map_request(|request: Request<Incoming>| request.map(Body::new));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut connection = std::pin::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        // Mostly peers that went away.
        tracing::debug!(error = %error, "a connection ended");
    }
}
