//! One watch for all pods of the installation, feeding the [`Index`].

use std::{pin::pin, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use kube::{
    Api, Client,
    api::GetParams,
    core::Request,
    runtime::watcher::{self, Event, watcher},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    call::{self, Fault},
    connection::{Connection, Watch},
    index::{Index, Missing},
    pod,
    seen::SeenPod,
};

/// Pods in one page of a listing. A pod can be 256 KiB long, and the text of a page is held in memory.
const PAGE: u32 = 100;

/// Pods that are looked for by name at the same time.
const LOOKS: usize = 16;

/// The shortest time between the beginnings of two listings, if the first one's watch didn't last; it doubles with each
/// that doesn't.
const RELIST: Duration = Duration::from_secs(1);

/// A watch that has lasted this long was worth its listing.
const WORTHWHILE: Duration = Duration::from_mins(2);

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
    let api: Api<SeenPod> = Api::namespaced(client, connection.namespace());
    let config = watcher::Config::default()
        .labels(&format!("{}={installation}", pod::INSTALLATION))
        .page_size(PAGE);
    let mut events = pin!(watcher(api, config));
    let mut pause = Duration::ZERO;
    let mut listings = Listings::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                let listed = !matches!(event, Event::Init | Event::InitApply(_));
                if matches!(event, Event::Init) {
                    // The stream asks for the listing when it is asked for the next item.
                    let pause = listings.pause(Instant::now());
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.8..1.2))).await;
                    connection.open().await;
                }
                let missing = feed(index, event);
                look_for(connection, index, missing).await;
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
                connection.open().await;
            }
        }
    }
}

/// Keeps listings apart: where a server forgets its past again and again, each listing would be followed by the next.
#[derive(Default)]
struct Listings {
    last: Option<Instant>,
    gap: Duration,
}

impl Listings {
    /// How long to wait before the listing that is due now.
    fn pause(&mut self, now: Instant) -> Duration {
        let since = self.last.map(|last| now.saturating_duration_since(last));
        let Some(since) = since.filter(|since| *since < WORTHWHILE) else {
            *self = Self {
                last: Some(now),
                gap: RELIST,
            };
            return Duration::ZERO;
        };
        let pause = self.gap.saturating_sub(since);
        self.last = Some(now + pause);
        self.gap = (self.gap * 2).min(MAX_PAUSE);
        pause
    }
}

/// Gives the pods that a listing lacks.
fn feed(index: &Index, event: Event<SeenPod>) -> Vec<Missing> {
    match event {
        Event::Init => index.begin_listing(),
        Event::InitApply(SeenPod(pod)) | Event::Apply(SeenPod(pod)) => index.apply(&pod),
        Event::Delete(SeenPod(pod)) => index.delete(&pod),
        Event::InitDone => return index.end_listing(),
    }
    Vec::new()
}

/// Looks for pods that a listing lacks. A listing may be older than a pod that it lacks, and what counts as gone is tried
/// again: only the server's word about the pod itself will do. Without an answer the next listing asks again.
async fn look_for(connection: &Connection, index: &Index, missing: Vec<Missing>) {
    let looks = stream::iter(missing).map(|missing| async move {
        let name = pod::name(missing.attempt);
        let get = |pods: &Request| pods.get(&name, &GetParams::default());
        match connection.call_again(get).await {
            Ok(answer) => {
                if let Ok(SeenPod(pod)) = serde_json::from_slice(&answer) {
                    index.apply(&pod);
                }
            }
            Err(Fault::NotFound) => index.lose(&missing),
            Err(fault) => {
                tracing::warn!(pod = name, error = %fault.into_source(), "whether the pod is there can't be found out; asking again later");
            }
        }
    });
    looks.buffer_unordered(LOOKS).collect::<()>().await;
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
