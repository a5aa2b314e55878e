//! A stateful API server for pods and Secrets of one namespace, as far as the runner goes: versions, conflicts,
//! preconditions, pages, selectors, watches from a version. Faults are switched on by the test. That it behaves like
//! the real one without them is checked by [`contract`], which runs against both.

pub(super) mod contract;
mod faults;

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::watch;

type Answer = http::Response<UnsyncBoxBody<Bytes, Infallible>>;

/// What goes wrong with one request.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// Refused with this status and `Retry-After`, and not done.
    Refused(u16, Option<u64>),
    /// Done, and answered with this status all the same.
    DoneBut(u16),
    /// Answered after this long.
    Slow(Duration),
    /// A listing as it was at the beginning of time.
    Stale,
    /// A watch: its version is forgotten.
    Forgotten,
}

/// What goes wrong with what a watch is sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trouble {
    /// The connection breaks off with the next event unsent.
    Drop,
    /// The next event is sent twice.
    Repeat,
    /// The next event is sent after the one that follows it.
    Swap,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<(String, String), Value>,
    events: Vec<(u64, &'static str, Value)>,
    /// Beginning of a request → what is wrong with the next ones of that kind.
    faults: Vec<(String, Fault)>,
    troubles: VecDeque<Trouble>,
    seen: Vec<String>,
}

/// The server. Cheap to clone.
#[derive(Clone)]
pub(super) struct Fake {
    state: Arc<Mutex<State>>,
    version: Arc<watch::Sender<u64>>,
    watching: Arc<AtomicUsize>,
    most_watching: Arc<AtomicUsize>,
    under_way: Arc<AtomicUsize>,
    most_under_way: Arc<AtomicUsize>,
}

impl Fake {
    pub(super) fn new() -> Self {
        let state = State {
            version: 100,
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            version: Arc::new(watch::Sender::new(100)),
            watching: Arc::default(),
            most_watching: Arc::default(),
            under_way: Arc::default(),
            most_under_way: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The next request that begins like this, such as `POST pods`, goes wrong.
    pub(super) fn break_next(&self, request: &str, fault: Fault) {
        self.lock().faults.push((request.to_owned(), fault));
    }

    /// What the next events meet with on their way.
    pub(super) fn trouble(&self, trouble: Trouble) {
        self.lock().troubles.push_back(trouble);
    }

    /// Requests so far that begin like this.
    pub(super) fn count(&self, request: &str) -> usize {
        self.lock().seen.iter().filter(|seen| seen.starts_with(request)).count()
    }

    /// The most watches, and the most other requests, that were ever under way at the same time.
    pub(super) fn most(&self) -> (usize, usize) {
        (
            self.most_watching.load(Ordering::SeqCst),
            self.most_under_way.load(Ordering::SeqCst),
        )
    }

    /// Pods that are there.
    pub(super) fn pods(&self) -> Vec<String> {
        let state = self.lock();
        let pods = state.objects.keys().filter(|(plural, _)| plural == "pods");
        pods.map(|(_, name)| name.clone()).collect()
    }

    /// Something happens to a pod.
    pub(super) fn change(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut state = self.lock();
        let mut pod = state.objects[&("pods".to_owned(), name.to_owned())].clone();
        change(&mut pod);
        self.store(&mut state, "pods", "MODIFIED", pod);
    }

    /// Somebody else deletes a pod for good.
    pub(super) fn remove(&self, name: &str) {
        let mut state = self.lock();
        let pod = state.objects[&("pods".to_owned(), name.to_owned())].clone();
        self.store(&mut state, "pods", "DELETED", pod);
    }

    fn store(&self, state: &mut State, plural: &str, kind: &'static str, mut object: Value) -> Value {
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let key = (
            plural.to_owned(),
            object["metadata"]["name"].as_str().unwrap().to_owned(),
        );
        if kind == "DELETED" {
            state.objects.remove(&key);
        } else {
            state.objects.insert(key, object.clone());
        }
        if plural == "pods" {
            state.events.push((state.version, kind, object.clone()));
        }
        self.version.send_replace(state.version);
        object
    }

    /// A client of it.
    pub(super) fn client(&self) -> Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let fake = fake.clone();
            async move { Ok::<_, Infallible>(fake.serve(request).await) }
        });
        Client::new(service, "builds")
    }

    async fn serve(&self, request: http::Request<Body>) -> Answer {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let uri = head.uri.to_string();
        let path = uri.split_once("/namespaces/builds/").map_or("", |(_, path)| path);
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let query: BTreeMap<String, String> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let watches = query.get("watch").is_some_and(|watch| watch == "true" || watch == "1");
        let name = if watches {
            format!("WATCH {path}")
        } else {
            format!("{} {path}", head.method)
        };
        let fault = {
            let mut state = self.lock();
            state.seen.push(name.clone());
            let next = state
                .faults
                .iter()
                .position(|(kind, _)| name.starts_with(kind.as_str()));
            next.map(|next| state.faults.remove(next).1)
        };
        if watches {
            return self.watch(&query, fault.as_ref());
        }
        let _under_way = Count::up(&self.under_way, &self.most_under_way);
        // Others get their turn, so that what may happen at the same time does.
        tokio::task::yield_now().await;
        match fault {
            Some(Fault::Refused(code, retry_after)) => {
                let mut answer = status(code, "Refused", "as the test wants it");
                if let Some(seconds) = retry_after {
                    answer.headers_mut().insert("retry-after", seconds.into());
                }
                return answer;
            }
            Some(Fault::DoneBut(code)) => {
                self.answer(&head.method, path, &query, &body, false);
                return status(
                    code,
                    "Timeout",
                    "the server was unable to return a response in the time allotted",
                );
            }
            Some(Fault::Slow(length)) => tokio::time::sleep(length).await,
            Some(Fault::Stale) => return self.answer(&head.method, path, &query, &body, true),
            Some(Fault::Forgotten) | None => {}
        }
        self.answer(&head.method, path, &query, &body, false)
    }

    fn answer(
        &self,
        method: &http::Method,
        path: &str,
        query: &BTreeMap<String, String>,
        body: &Bytes,
        outdated: bool,
    ) -> Answer {
        let mut state = self.lock();
        let (plural, name) = path.split_once('/').unwrap_or((path, ""));
        let given: Value = serde_json::from_slice(body).unwrap_or_default();
        let key = (plural.to_owned(), name.to_owned());
        let known = state.objects.get(&key).cloned();
        match (method.as_str(), name, known) {
            ("POST", "", _) => {
                let name = given["metadata"]["name"].as_str().unwrap().to_owned();
                if state.objects.contains_key(&(plural.to_owned(), name.clone())) {
                    return about(
                        409,
                        "AlreadyExists",
                        &format!("{plural} \"{name}\" already exists"),
                        plural,
                    );
                }
                let mut object = given;
                object["metadata"]["uid"] = json!(format!("uid-{}", state.version + 1));
                object["metadata"]["creationTimestamp"] = json!("2026-11-24T00:00:00Z");
                if plural == "pods" {
                    object["status"] = json!({"phase": "Pending"});
                }
                let stored = self.store(&mut state, plural, "ADDED", object);
                json_answer(201, &stored)
            }
            ("GET", "", _) => list(&state, plural, query, outdated),
            (_, _, None) => about(404, "NotFound", &format!("{plural} \"{name}\" not found"), plural),
            ("GET", _, Some(object)) => json_answer(200, &object),
            ("PATCH", _, Some(mut object)) => {
                let uid = &given["metadata"]["uid"];
                if !uid.is_null() && *uid != object["metadata"]["uid"] {
                    return about(
                        422,
                        "Invalid",
                        "metadata.uid: Invalid value: field is immutable",
                        plural,
                    );
                }
                merge(&mut object, &given);
                let stored = self.store(&mut state, plural, "MODIFIED", object);
                json_answer(200, &stored)
            }
            ("DELETE", _, Some(object)) => {
                let uid = &given["preconditions"]["uid"];
                if !uid.is_null() && *uid != object["metadata"]["uid"] {
                    return about(409, "Conflict", "the UID in the precondition does not match", plural);
                }
                let deleted = self.store(&mut state, plural, "DELETED", object);
                json_answer(200, &deleted)
            }
            (method, ..) => status(405, "MethodNotAllowed", method),
        }
    }

    fn watch(&self, query: &BTreeMap<String, String>, fault: Option<&Fault>) -> Answer {
        match fault {
            Some(Fault::Refused(code, _)) => return status(*code, "Refused", "as the test wants it"),
            Some(Fault::Forgotten) => return gone(),
            _ => {}
        }
        let from: u64 = query["resourceVersion"].parse().unwrap();
        if from < 100 {
            return gone();
        }
        let count = Count::up(&self.watching, &self.most_watching);
        let selector = query.get("labelSelector").cloned().unwrap_or_default();
        let watcher = Watcher {
            fake: self.clone(),
            changes: self.version.subscribe(),
            from,
            selector,
            _count: count,
        };
        let frames = stream::unfold(watcher, |mut watcher| async {
            let text = watcher.next().await?;
            Some((Ok(Frame::data(Bytes::from(text))), watcher))
        });
        http::Response::new(StreamBody::new(frames.boxed()).boxed_unsync())
    }
}

/// What a watch is to be sent now.
enum Due {
    Lines(String),
    Nothing,
    /// The connection breaks off.
    Broken,
}

/// One connection of a watch.
struct Watcher {
    fake: Fake,
    changes: watch::Receiver<u64>,
    from: u64,
    selector: String,
    _count: Count,
}

impl Watcher {
    /// The next lines; `None` when the connection breaks off.
    async fn next(&mut self) -> Option<String> {
        loop {
            self.changes.borrow_and_update();
            match self.due() {
                Due::Lines(lines) => return Some(lines),
                Due::Broken => return None,
                Due::Nothing => self.changes.changed().await.ok()?,
            }
        }
    }

    fn due(&mut self) -> Due {
        let mut state = self.fake.lock();
        let due: Vec<_> = state
            .events
            .iter()
            .filter(|(version, _, pod)| *version > self.from && matches(pod, &self.selector))
            .take(2)
            .map(|(version, kind, pod)| (*version, json!({"type": kind, "object": pod}).to_string() + "\n"))
            .collect();
        let Some((version, line)) = due.first().cloned() else {
            return Due::Nothing;
        };
        let (passed, lines) = match (state.troubles.front(), due.get(1)) {
            (Some(Trouble::Drop), _) => {
                state.troubles.pop_front();
                return Due::Broken;
            }
            (Some(Trouble::Repeat), _) => (version, line.clone() + &line),
            (Some(Trouble::Swap), Some((second, next))) => (*second, next.clone() + &line),
            // The one that follows isn't there yet.
            (Some(Trouble::Swap), None) => return Due::Nothing,
            (None, _) => {
                self.from = version;
                return Due::Lines(line);
            }
        };
        state.troubles.pop_front();
        self.from = passed;
        Due::Lines(lines)
    }
}

/// Counts what is under way, and the most there ever was.
struct Count(Arc<AtomicUsize>);

impl Count {
    fn up(count: &Arc<AtomicUsize>, most: &AtomicUsize) -> Self {
        most.fetch_max(count.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn list(state: &State, plural: &str, query: &BTreeMap<String, String>, outdated: bool) -> Answer {
    let selector = query.get("labelSelector").map_or("", String::as_str);
    let after = query.get("continue").map_or("", String::as_str);
    let limit = query
        .get("limit")
        .and_then(|limit| limit.parse().ok())
        .unwrap_or(usize::MAX);
    let found = state.objects.iter().filter(|((kind, name), object)| {
        kind == plural && name.as_str() > after && matches(object, selector) && !outdated
    });
    let mut found: Vec<_> = found.map(|((_, name), object)| (name, object)).collect();
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map_or("", |(name, _)| name.as_str());
    let items: Vec<_> = found.iter().map(|(_, object)| object).collect();
    json_answer(
        200,
        &json!({
            "kind": "PodList", "apiVersion": "v1",
            "metadata": {"resourceVersion": state.version.to_string(), "continue": next}, "items": items,
        }),
    )
}

fn matches(object: &Value, selector: &str) -> bool {
    selector.split(',').filter(|pair| !pair.is_empty()).all(|pair| {
        let (key, value) = pair.split_once('=').unwrap();
        object["metadata"]["labels"][key] == value
    })
}

/// JSON merge patch.
fn merge(into: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    for (key, value) in fields {
        if value.is_null() {
            if let Some(fields) = into.as_object_mut() {
                fields.remove(key);
            }
        } else {
            merge(&mut into[key.as_str()], value);
        }
    }
}

fn json_answer(code: u16, body: &Value) -> Answer {
    let mut answer = http::Response::new(Full::new(Bytes::from(body.to_string())).boxed_unsync());
    *answer.status_mut() = http::StatusCode::from_u16(code).unwrap();
    answer
}

fn status(code: u16, reason: &str, message: &str) -> Answer {
    about(code, reason, message, "")
}

fn about(code: u16, reason: &str, message: &str, kind: &str) -> Answer {
    json_answer(
        code,
        &json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
            "message": message, "details": {"kind": kind},
        }),
    )
}

/// A watch of a version that the server has forgotten.
fn gone() -> Answer {
    let event = json!({"type": "ERROR", "object": {
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired",
        "message": "too old resource version",
    }});
    http::Response::new(Full::new(Bytes::from(event.to_string() + "\n")).boxed_unsync())
}
