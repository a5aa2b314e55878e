//! Reading a step's log by following the Kubernetes log API.
//!
//! The API promises little: a follow stream may end at any time without the log being at its end, may hang, may skip
//! what was rotated away, reports the node's errors as log text, and takes whole seconds only as a place to begin.
//! The frames' numbers make up for it. A stream's end means nothing here: what counts is that the container has
//! ended, and that everything its agent says it wrote has come, or that a complete reading brings nothing new.
//!
//! Reading slowly loses lines when the node rotates the log, so chunks are passed on as they come.

pub(super) mod lines;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::BodyExt;
use k8s_openapi::jiff::Timestamp;
use kube::{api::LogParams, client::Body};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::task::TaskTracker;

use self::lines::Lines;
use super::{Inner, call, pod};
use crate::{
    domain::{event::StepName, id::AttemptId},
    runner::{LogEnd, LogPosition, LogReader, Observation, StepObservation},
};

/// Chunks between the reader and whoever takes them; a chunk is what came in one piece, at most some 100 KiB.
const CHUNKS: usize = 64;
/// How long the API server may take to begin a stream.
const OPEN: Duration = Duration::from_secs(20);
/// A follow stream that is silent for this long is opened again: it may be half-open, and nothing else would tell.
const IDLE: Duration = Duration::from_mins(1);
/// How long a follow stream may go on after its container was seen to have ended.
const LINGER: Duration = Duration::from_secs(3);
/// How long to look for the rest of a log after its container ended.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first and the longest pause before a stream is opened again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Starts reading.
pub(super) fn read(
    inner: &Arc<Inner>,
    tasks: &TaskTracker,
    attempt: AttemptId,
    step: StepName,
    after: LogPosition,
) -> LogReader {
    let (sender, chunks) = mpsc::channel(CHUNKS);
    let reader = Reader {
        inner: Arc::clone(inner),
        name: pod::name(attempt),
        step,
        observed: inner.index.observe(attempt),
        sender,
        lines: Lines::new(after),
        from_start: false,
    };
    LogReader {
        chunks,
        end: tasks.spawn(reader.run()),
    }
}

struct Reader {
    inner: Arc<Inner>,
    name: String,
    step: StepName,
    observed: watch::Receiver<Observation>,
    sender: mpsc::Sender<Bytes>,
    lines: Lines,
    /// The next stream is to begin at the log's beginning, because one that began later left a gap.
    from_start: bool,
}

/// Where a step stands, as far as its log is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It has not begun.
    Ahead,
    /// It runs.
    Running,
    /// It has ended, having written this many lines if that is known; or its attempt has.
    Over(Option<u64>),
    /// The attempt ended before it began.
    Never,
}

/// How one stream ended.
#[derive(Debug)]
enum Ended {
    /// Regularly.
    Clean,
    /// It was silent for too long.
    Idle,
    /// It failed, with words for the gap that may follow from it.
    Broken(String),
    /// The pod isn't there.
    Missing,
    /// Nobody wants it any more.
    Abandoned,
}

impl Reader {
    async fn run(mut self) -> LogEnd {
        let mut pause = PAUSES.0;
        let mut deadline = None;
        let mut missing = 0;
        loop {
            let state = state(&self.observed.borrow_and_update(), self.step);
            let over = match state {
                State::Never => return LogEnd::Complete,
                State::Over(_) if self.is_complete() => return LogEnd::Complete,
                State::Ahead => {
                    if self.wait(None).await.is_err() {
                        return abandoned();
                    }
                    continue;
                }
                State::Running => false,
                State::Over(_) => true,
            };
            let deadline = over.then(|| *deadline.get_or_insert_with(|| Instant::now() + PATIENCE));
            let before = self.lines.position().line;
            let ended = self.stream(!over).await;
            if self.is_complete() {
                return LogEnd::Complete;
            }
            let progress = self.lines.position().line > before;
            if progress {
                (pause, missing) = (PAUSES.0, 0);
            }
            let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            match ended {
                Ended::Abandoned => return abandoned(),
                Ended::Missing => {
                    missing += 1;
                    // The watch knows better whether it is gone, and what it had to say at last; give it a moment.
                    if missing > 3 || late {
                        return self.gone();
                    }
                }
                // Nothing new after the end: for all that can be known, this is all.
                Ended::Clean if state == State::Over(None) && !progress => return LogEnd::Complete,
                Ended::Clean if late && !progress => return LogEnd::Complete,
                Ended::Broken(reason) => {
                    tracing::debug!(
                        pod = self.name,
                        step = self.step.as_str(),
                        reason,
                        "the log stream broke off"
                    );
                    if late {
                        return LogEnd::Lost(reason);
                    }
                }
                Ended::Clean | Ended::Idle => {}
            }
            if over && progress {
                continue;
            }
            if self.wait(Some(pause)).await.is_err() {
                return abandoned();
            }
            pause = (pause * 2).min(if over { Duration::from_secs(1) } else { PAUSES.1 });
        }
    }

    /// The pod was deleted. That matters only if there is more than what has come.
    fn gone(&self) -> LogEnd {
        if self.is_complete() {
            LogEnd::Complete
        } else {
            LogEnd::Lost("the pod was deleted before its log had been read".to_owned())
        }
    }

    /// Whether everything has come that the step's agent says it wrote.
    fn is_complete(&self) -> bool {
        let state = state(&self.observed.borrow(), self.step);
        matches!(state, State::Over(Some(lines)) if self.lines.position().line >= lines)
    }

    /// Waits until something is observed, or for the given time; fails when there is nothing to wait for any more.
    async fn wait(&mut self, limit: Option<Duration>) -> Result<(), ()> {
        let shutdown = self.inner.shutdown.clone();
        let pause = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.observed.changed() => changed.map_err(drop),
            () = pause => Ok(()),
            () = self.sender.closed() => Err(()),
            () = shutdown.cancelled() => Err(()),
        }
    }

    /// Reads one stream to its end.
    async fn stream(&mut self, follow: bool) -> Ended {
        let inner = Arc::clone(&self.inner);
        // What has ended is read without waiting for a place: it is short work, and may not be there for long.
        let _permit = if follow {
            tokio::select! {
                permit = inner.logs.acquire() => permit.ok(),
                () = self.sender.closed() => return Ended::Abandoned,
                () = inner.shutdown.cancelled() => return Ended::Abandoned,
            }
        } else {
            None
        };
        let since = self.since();
        let body = tokio::select! {
            opened = open(&inner, &self.name, self.step, follow, since) => match opened {
                Ok(body) => body,
                Err(ended) => return ended,
            },
            () = self.sender.closed() => return Ended::Abandoned,
            () = inner.shutdown.cancelled() => return Ended::Abandoned,
        };
        self.lines.restart();
        self.from_start = false;
        self.copy(body, follow, since.is_some()).await
    }

    async fn copy(&mut self, body: Body, follow: bool, strict: bool) -> Ended {
        let shutdown = self.inner.shutdown.clone();
        let mut body = body.into_data_stream();
        let mut over = !follow;
        let mut limit = Instant::now() + IDLE;
        loop {
            tokio::select! {
                chunk = body.next() => {
                    let chunk = match chunk {
                        Some(Ok(chunk)) => chunk,
                        Some(Err(error)) => return Ended::Broken(format!("the log stream broke off: {error}")),
                        None => break,
                    };
                    if !over {
                        limit = Instant::now() + IDLE;
                    }
                    let Ok(new) = self.lines.take(&chunk, strict) else {
                        self.from_start = true;
                        return Ended::Clean;
                    };
                    for chunk in new {
                        tokio::select! {
                            sent = self.sender.send(chunk) => if sent.is_err() {
                                return Ended::Abandoned;
                            },
                            () = shutdown.cancelled() => return Ended::Abandoned,
                        }
                    }
                    if self.is_complete() {
                        return Ended::Clean;
                    }
                }
                changed = self.observed.changed(), if !over => {
                    if changed.is_err() {
                        return Ended::Abandoned;
                    }
                    if state(&self.observed.borrow_and_update(), self.step) != State::Running {
                        over = true;
                        limit = limit.min(Instant::now() + LINGER);
                    }
                    // The node closes the stream of a container that has ended seconds later.
                    if self.is_complete() {
                        return Ended::Clean;
                    }
                }
                () = tokio::time::sleep_until(limit) => return Ended::Idle,
                () = self.sender.closed() => return Ended::Abandoned,
                () = shutdown.cancelled() => return Ended::Abandoned,
            }
        }
        match self.lines.foreign() {
            Some(words) => Ended::Broken(format!("the node could not give the log: {words}")),
            None => Ended::Clean,
        }
    }

    /// Where the next stream is to begin. The API takes whole seconds, and the node's idea of when a line was written
    /// is a little later than the agent's.
    fn since(&self) -> Option<Timestamp> {
        let LogPosition { line, at_ms } = self.lines.position();
        if line == 0 || self.from_start {
            return None;
        }
        let second = i64::try_from(at_ms / 1000).ok()?;
        Timestamp::from_second(second - 1).ok()
    }
}

/// Opens a stream.
async fn open(
    inner: &Inner,
    name: &str,
    step: StepName,
    follow: bool,
    since: Option<Timestamp>,
) -> Result<Body, Ended> {
    let broken = |fault: call::Fault| match fault {
        call::Fault::NotFound => Ended::Missing,
        fault => Ended::Broken(format!("the log can't be read: {}", fault.into_source())),
    };
    let params = LogParams {
        container: Some(step.as_str().to_owned()),
        follow,
        since_time: since,
        ..LogParams::default()
    };
    let request = inner
        .connection
        .pods()
        .logs(name, &params)
        .map_err(|error| Ended::Broken(error.to_string()))?;
    let client = inner.connection.client().map_err(broken)?;
    let exchange = async {
        let response = client
            .send(request.map(Body::from))
            .await
            .map_err(|error| broken(call::transport(&inner.connection.server(), &error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|error| broken(call::transport(&inner.connection.server(), &error)))?
            .to_bytes();
        Err(broken(call::refusal(
            inner.connection.namespace(),
            status.as_u16(),
            None,
            &body,
        )))
    };
    tokio::time::timeout(OPEN, exchange).await.unwrap_or_else(|_| {
        Err(Ended::Broken(
            "the log can't be read: the API server doesn't answer".to_owned(),
        ))
    })
}

fn state(observation: &Observation, step: StepName) -> State {
    let seen: Option<&StepObservation> = observation.steps().iter().find(|seen| seen.step == step);
    let attempt_over = matches!(observation, Observation::Finished { .. } | Observation::Gone { .. });
    match (seen, attempt_over) {
        (None, false) => State::Ahead,
        (None, true) => State::Never,
        (Some(StepObservation { end: Some(end), .. }), _) => {
            State::Over(end.report.as_ref().map(|report| report.lines))
        }
        (Some(_), true) => State::Over(None),
        (Some(_), false) => State::Running,
    }
}

/// Whoever asked is no longer there, or the service shuts down: nobody will draw conclusions from this.
fn abandoned() -> LogEnd {
    LogEnd::Lost("reading was given up".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        domain::spec::Builder,
        runner::{
            builder::tests::assignment,
            kubernetes::stub::{Stub, answer, endless, pod_json, status, text},
        },
    };

    const SECOND: u64 = 1_795_447_270;

    fn attempt() -> AttemptId {
        assignment(Builder::Buildkit).attempt
    }

    fn request() -> String {
        format!("GET pods/{}/log", pod::name(attempt()))
    }

    /// Frames with these numbers, ten a second.
    fn frames(numbers: std::ops::RangeInclusive<u64>) -> String {
        numbers
            .map(|number| format!("{number} {} o. line {number}\n", SECOND * 1000 + number * 100))
            .collect::<Vec<_>>()
            .concat()
    }

    fn see(inner: &Inner, source: &Value) {
        let pod = pod_json(
            attempt(),
            "default",
            &json!({"phase": "Pending", "initContainerStatuses": [{
                "name": "source", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": source,
            }]}),
        );
        inner.index.apply(&serde_json::from_value(pod).unwrap());
    }

    fn running() -> Value {
        json!({"running": {"startedAt": "2026-11-23T14:00:01Z"}})
    }

    /// A container that has ended, with its agent's word for how many lines there are, or without.
    fn ended(lines: Option<u64>) -> Value {
        let report = lines.map(|lines| json!({"exit": {"code": 0}, "lines": lines, "bytes": 1}).to_string());
        json!({"terminated": {
            "exitCode": 1, "message": report, "startedAt": "2026-11-23T14:00:01Z", "finishedAt": "2026-11-23T14:00:09Z",
        }})
    }

    fn start(inner: &Arc<Inner>, after: LogPosition) -> LogReader {
        read(inner, &TaskTracker::new(), attempt(), StepName::Source, after)
    }

    async fn finish(mut reader: LogReader) -> (String, LogEnd) {
        let mut log = Vec::new();
        while let Some(chunk) = reader.chunks.recv().await {
            assert!(chunk.ends_with(b"\n"));
            log.extend_from_slice(&chunk);
        }
        (String::from_utf8(log).unwrap(), reader.end.await.unwrap())
    }

    fn queries(stub: &Stub) -> Vec<String> {
        let seen = stub.seen();
        seen.into_iter()
            .map(|(request, _)| request.split_once("log?").unwrap().1.trim_start_matches('&').to_owned())
            .collect()
    }

    fn since(second: u64) -> String {
        let at = Timestamp::from_second(i64::try_from(second).unwrap()).unwrap();
        format!("sinceTime={at}").replace(':', "%3A")
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_ends_is_taken_up_where_it_ended() {
        let stub = Stub::default();
        stub.expect(request(), text(&[&frames(1..=12)[..30], &frames(1..=12)[30..]]))
            .expect(request(), text(&[&frames(3..=25)]));
        let inner = stub.inner();
        see(&inner, &running());
        let mut reader = start(&inner, LogPosition::default());
        let mut log = Vec::new();
        while !log.ends_with(frames(25..=25).as_bytes()) {
            log.extend_from_slice(&reader.chunks.recv().await.unwrap());
        }
        see(&inner, &ended(Some(25)));
        let (rest, end) = finish(reader).await;
        assert_eq!(String::from_utf8(log).unwrap() + &rest, frames(1..=25));
        assert_eq!(end, LogEnd::Complete);
        let queries = queries(&stub);
        assert_eq!(queries[0], "container=source&follow=true");
        // Line 12 was written 1.2 s into its minute: that is cut to the second, and one more is taken off.
        assert_eq!(queries[1], format!("container=source&follow=true&{}", since(SECOND)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_already_is_not_read_again() {
        let stub = Stub::default();
        stub.expect(request(), text(&[&frames(1..=9)]));
        let inner = stub.inner();
        see(&inner, &ended(Some(9)));
        let held = LogPosition {
            line: 7,
            at_ms: SECOND * 1000 + 700,
        };
        assert_eq!(finish(start(&inner, held)).await, (frames(8..=9), LogEnd::Complete));
        assert_eq!(queries(&stub), [format!("container=source&{}", since(SECOND - 1))]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_asked_where_everything_is_held() {
        let stub = Stub::default();
        let inner = stub.inner();
        see(&inner, &ended(Some(7)));
        let held = LogPosition { line: 7, at_ms: 1 };
        assert_eq!(finish(start(&inner, held)).await, (String::new(), LogEnd::Complete));
        assert_eq!(stub.seen(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_after_a_new_beginning_leads_back_to_the_start() {
        let stub = Stub::default();
        stub.expect(request(), text(&[&frames(9..=12)]))
            .expect(request(), text(&[&frames(1..=12)]));
        let inner = stub.inner();
        see(&inner, &ended(Some(12)));
        let held = LogPosition {
            line: 4,
            at_ms: SECOND * 1000,
        };
        assert_eq!(finish(start(&inner, held)).await, (frames(5..=12), LogEnd::Complete));
        assert_eq!(queries(&stub)[1], "container=source");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_report_reading_ends_when_nothing_new_comes() {
        let stub = Stub::default();
        stub.expect(request(), text(&[&frames(1..=5)]))
            .expect(request(), text(&[&frames(1..=8)]))
            .expect(request(), text(&[&frames(1..=8)]));
        let inner = stub.inner();
        see(&inner, &ended(None));
        let reader = start(&inner, LogPosition::default());
        assert_eq!(finish(reader).await, (frames(1..=8), LogEnd::Complete));
        assert!(stub.is_done());
    }

    #[tokio::test(start_paused = true)]
    async fn the_rest_is_looked_for_but_not_for_ever() {
        let stub = Stub::default();
        stub.expect(request(), text(&[&frames(1..=5)]));
        for _ in 0..100 {
            stub.expect(request(), text(&[&frames(5..=5)]));
        }
        let inner = stub.inner();
        see(&inner, &ended(Some(8)));
        let begun = Instant::now();
        let reader = start(&inner, LogPosition::default());
        // What is missing shows in the report; nothing failed in reading.
        assert_eq!(finish(reader).await, (frames(1..=5), LogEnd::Complete));
        assert!((PATIENCE..PATIENCE * 2).contains(&begun.elapsed()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_nodes_own_errors_are_no_log() {
        let stub = Stub::default();
        let error = "unable to retrieve container logs for containerd://abc\n";
        for _ in 0..100 {
            stub.expect(request(), text(&[error]));
        }
        let inner = stub.inner();
        see(&inner, &ended(None));
        let (log, end) = finish(start(&inner, LogPosition::default())).await;
        assert_eq!(log, "");
        assert!(matches!(end, LogEnd::Lost(reason) if reason.contains("unable to retrieve")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_container_that_is_not_ready_is_asked_again() {
        let stub = Stub::default();
        let waiting = "container \"source\" in pod \"x\" is waiting to start: PodInitializing";
        stub.expect(request(), status(400, "BadRequest", waiting, ""))
            .expect(request(), answer(204, &json!(null)))
            .expect(request(), text(&[&frames(1..=2)]));
        let inner = stub.inner();
        see(&inner, &running());
        let mut reader = start(&inner, LogPosition::default());
        let first = reader.chunks.recv().await.unwrap();
        assert_eq!(first, frames(1..=2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_is_opened_again() {
        let stub = Stub::default();
        stub.expect(request(), endless(&frames(1..=2)))
            .expect(request(), endless(&frames(1..=3)));
        let inner = stub.inner();
        see(&inner, &running());
        let begun = Instant::now();
        let mut reader = start(&inner, LogPosition::default());
        assert_eq!(reader.chunks.recv().await.unwrap(), frames(1..=2));
        assert_eq!(reader.chunks.recv().await.unwrap(), frames(3..=3));
        assert!(begun.elapsed() >= IDLE);
        // Everything is there: the stream need not end.
        see(&inner, &ended(Some(3)));
        assert_eq!(finish(reader).await, (String::new(), LogEnd::Complete));
        assert!(begun.elapsed() < IDLE + LINGER);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_outlives_its_container_is_left() {
        let stub = Stub::default();
        stub.expect(request(), endless(&frames(1..=2)))
            .expect(request(), text(&[&frames(1..=4)]));
        let inner = stub.inner();
        see(&inner, &running());
        let mut reader = start(&inner, LogPosition::default());
        assert_eq!(reader.chunks.recv().await.unwrap(), frames(1..=2));
        see(&inner, &ended(Some(4)));
        assert_eq!(finish(reader).await, (frames(3..=4), LogEnd::Complete));
        assert_eq!(queries(&stub)[1], format!("container=source&{}", since(SECOND - 1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deleted_pod_takes_its_log_along() {
        let stub = Stub::default();
        for _ in 0..4 {
            stub.expect(request(), status(404, "NotFound", "pods \"x\" not found", "pods"));
        }
        let inner = stub.inner();
        see(&inner, &running());
        let (log, end) = finish(start(&inner, LogPosition::default())).await;
        assert_eq!(log, "");
        assert!(matches!(end, LogEnd::Lost(reason) if reason.contains("deleted")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_never_began_has_no_log() {
        let stub = Stub::default();
        let inner = stub.inner();
        let reader = start(&inner, LogPosition::default());
        let gone = pod_json(attempt(), "default", &json!({"phase": "Failed", "reason": "Evicted"}));
        inner.index.apply(&serde_json::from_value(gone).unwrap());
        assert_eq!(finish(reader).await, (String::new(), LogEnd::Complete));
        assert_eq!(stub.seen(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn reading_ends_when_nobody_wants_it() {
        let stub = Stub::default();
        stub.expect(request(), endless(&frames(1..=2)));
        let inner = stub.inner();
        see(&inner, &running());
        let tasks = TaskTracker::new();
        let reader = read(&inner, &tasks, attempt(), StepName::Source, LogPosition::default());
        drop(reader.chunks);
        tasks.close();
        tasks.wait().await;
    }

    #[tokio::test(start_paused = true)]
    async fn reading_ends_with_the_service() {
        let stub = Stub::default();
        let inner = stub.inner();
        let reader = start(&inner, LogPosition::default());
        inner.shutdown.cancel();
        assert!(matches!(finish(reader).await.1, LogEnd::Lost(_)));
    }
}
