//! One watch for all pods of the installation, feeding the [`Index`].

use std::{pin::pin, sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    runtime::watcher::{self, Event, watcher},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    call::{self, Fault},
    connection::{Connection, Watch},
    index::Index,
    pod,
};

/// Pods in one page of a listing. A pod can be 256 KiB long, and a page is held in memory.
const PAGE: u32 = 200;

/// The longest pause after an error.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Watches until shutdown. The stream mends itself: errors come as items and are followed by another try; an expired
/// position leads to a new listing.
pub(super) async fn run(
    connection: Arc<Connection>,
    index: Arc<Index>,
    installation: String,
    shutdown: CancellationToken,
) {
    let mut clients = connection.clients();
    loop {
        let client = clients.borrow_and_update().clone();
        let watching = async {
            match client {
                Some(client) => watch(&connection, client, &index, &installation).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = watching => {}
            changed = clients.changed() => if changed.is_err() { break },
        }
    }
    index.close();
}

async fn watch(connection: &Connection, client: Client, index: &Index, installation: &str) {
    let api: Api<Pod> = Api::namespaced(client, connection.namespace());
    let config = watcher::Config::default()
        .labels(&format!("{}={installation}", pod::INSTALLATION))
        .page_size(PAGE);
    let mut events = pin!(watcher(api, config));
    let mut pause = Duration::ZERO;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                let listed = !matches!(event, Event::Init | Event::InitApply(_));
                feed(index, event);
                if listed {
                    connection.report_watch(Watch::Fine);
                    pause = Duration::ZERO;
                }
            }
            Err(error) => {
                tracing::warn!(error = %error, "the watch of the build pods broke off; trying again");
                match refusal(connection.namespace(), &error) {
                    Some(reason) => connection.report_watch(Watch::Refused(reason, Instant::now())),
                    None => connection.suspect(),
                }
                // The stream does nothing until it is asked for the next item. Its own backoff starts anew with every
                // listing that is begun.
                pause = (pause * 2).clamp(Duration::from_millis(500), MAX_PAUSE);
                tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            }
        }
    }
}

fn feed(index: &Index, event: Event<Pod>) {
    match event {
        Event::Init => index.begin_listing(),
        Event::InitApply(pod) | Event::Apply(pod) => index.apply(&pod),
        Event::Delete(pod) => index.delete(&pod),
        Event::InitDone => index.end_listing(),
    }
}

/// What is to be done about a refusal by the server; `None` for errors that the next try mends.
fn refusal(namespace: &str, error: &watcher::Error) -> Option<String> {
    let (watcher::Error::InitialListFailed(error)
    | watcher::Error::WatchStartFailed(error)
    | watcher::Error::WatchFailed(error)) = error
    else {
        return None;
    };
    let kube::Error::Api(status) = error else {
        return None;
    };
    let body = serde_json::to_vec(status).unwrap_or_default();
    match call::refusal(namespace, status.code, None, &body) {
        Fault::Unusable(reason) => Some(reason),
        _ => None,
    }
}
