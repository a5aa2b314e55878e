//! What is known of every attempt's pod, fed by one watch and by launches. Synchronous: no I/O, no waiting.
//!
//! An attempt is *gone* once its pod was seen, or launched by this process, and is there no longer. That is known from
//! a deletion, or after everything was listed again and it wasn't among it. An attempt that was never seen stays
//! unseen: whoever takes it over launches it first, which creates or finds its pod.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, Utc};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time};
use tokio::sync::watch;

use super::{
    observe::{any_runs, observe, shipping},
    pod,
};
use crate::{
    domain::id::AttemptId,
    runner::{Observation, Shipping},
};

/// What is needed to act on a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Handle {
    /// Its unique id: a deletion that names it hits no other pod of that name.
    pub(super) uid: String,
    /// When it was created.
    pub(super) created: DateTime<Utc>,
    /// Whether it has a node, whose kubelet ends it.
    pub(super) scheduled: bool,
    /// Whether the attempt is over.
    pub(super) finished: bool,
    /// Whether anything of it runs, be it only what pushes its log.
    pub(super) running: bool,
    /// What is known of the sending of its log.
    pub(super) shipping: Shipping,
    /// When its deletion takes effect, if it was asked for.
    pub(super) deleting: Option<DateTime<Utc>>,
    /// Grows with every change of the pod; 0 where that can't be said.
    pub(super) version: u64,
}

impl Handle {
    /// The handle of a pod.
    pub(super) fn of(pod: &Pod) -> Self {
        Self::with(pod, &observe(pod))
    }

    fn with(pod: &Pod, observation: &Observation) -> Self {
        let metadata = &pod.metadata;
        let second = |time: &Time| DateTime::from_timestamp(time.0.as_second(), 0);
        Self {
            uid: metadata.uid.clone().unwrap_or_default(),
            created: metadata
                .creation_timestamp
                .as_ref()
                .and_then(second)
                .unwrap_or_default(),
            scheduled: pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()),
            finished: matches!(observation, Observation::Finished { .. }),
            running: any_runs(pod),
            shipping: shipping(pod, observation),
            deleting: metadata.deletion_timestamp.as_ref().and_then(second),
            // A number in every server that is known, though no client may rely on it before Kubernetes 1.35.
            version: metadata
                .resource_version
                .as_deref()
                .and_then(|version| version.parse().ok())
                .unwrap_or(0),
        }
    }

    /// Whether `other` is old news: of a pod that had the name before this one, of which the watch may still tell when
    /// its successor was launched, or of this one before its latest change.
    fn succeeds(&self, other: &Self) -> bool {
        if self.uid == other.uid {
            other.version > 0 && self.version > other.version
        } else {
            self.created >= other.created
        }
    }
}

/// A pod that was known and that a listing lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) attempt: AttemptId,
    uid: String,
}

/// All attempts.
#[derive(Default)]
pub(super) struct Index(Mutex<State>);

#[derive(Default)]
struct State {
    attempts: HashMap<AttemptId, Entry>,
    /// Counts the listings; the current one, while one is under way.
    listing: u64,
    /// Whether a listing was ever completed.
    listed: bool,
    /// Unused entries are dropped when there are this many.
    sweep_at: usize,
}

struct Entry {
    observed: watch::Sender<Observation>,
    pod: Option<Handle>,
    /// The listing during which the pod was last known to exist; 0 for never.
    known: u64,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            observed: watch::Sender::new(Observation::Unseen),
            pod: None,
            known: 0,
        }
    }
}

impl Index {
    /// Follows an attempt.
    pub(super) fn observe(&self, attempt: AttemptId) -> watch::Receiver<Observation> {
        let mut state = self.lock();
        state.sweep();
        state.attempts.entry(attempt).or_default().observed.subscribe()
    }

    /// The attempt's pod, as last seen.
    pub(super) fn pod(&self, attempt: AttemptId) -> Option<Handle> {
        self.lock().attempts.get(&attempt)?.pod.clone()
    }

    /// What is known of the sending of the attempt's log. What is gone sends no more.
    pub(super) fn shipping(&self, attempt: AttemptId) -> Shipping {
        let state = self.lock();
        let Some(entry) = state.attempts.get(&attempt) else {
            return Shipping::Absent;
        };
        match &entry.pod {
            Some(pod) => pod.shipping,
            None if *entry.observed.borrow() == Observation::Unseen => Shipping::Absent,
            None => Shipping::Over,
        }
    }

    /// Every attempt that has a pod; `None` before the pods were listed for the first time.
    pub(super) fn list(&self) -> Option<Vec<AttemptId>> {
        let state = self.lock();
        state.listed.then(|| {
            let present = state.attempts.iter().filter(|(_, entry)| entry.pod.is_some());
            present.map(|(attempt, _)| *attempt).collect()
        })
    }

    /// A pod as the watch shows it.
    pub(super) fn apply(&self, pod: &Pod) {
        if let Some(attempt) = attempt_of(pod) {
            self.lock().apply(attempt, pod);
        }
    }

    /// A pod as it was when this process created or found it. The watch may have shown it in a later state already.
    pub(super) fn launched(&self, attempt: AttemptId, pod: &Pod) {
        let mut state = self.lock();
        let fresh = state.attempts.entry(attempt).or_default().pod.is_none();
        if fresh {
            state.apply(attempt, pod);
        }
    }

    /// A pod was deleted; this is its last state.
    pub(super) fn delete(&self, pod: &Pod) {
        if let Some(attempt) = attempt_of(pod) {
            let mut state = self.lock();
            let deleted = Handle::of(pod);
            if let Some(entry) = state.attempts.get_mut(&attempt)
                && entry
                    .pod
                    .as_ref()
                    .is_none_or(|known| known.uid == deleted.uid || !known.succeeds(&deleted))
            {
                entry.lose(Some(observe(pod)));
            }
            state.drop_unused(attempt);
        }
    }

    /// A listing of all pods begins; each comes by [`Self::apply`].
    pub(super) fn begin_listing(&self) {
        self.lock().listing += 1;
    }

    /// The listing is complete: what was known before it and isn't in it seems to be gone.
    pub(super) fn end_listing(&self) -> Vec<Missing> {
        let mut state = self.lock();
        let listing = state.listing;
        state.listed = true;
        let missing = state.attempts.iter().filter_map(|(&attempt, entry)| {
            let pod = entry.pod.as_ref().filter(|_| entry.known < listing)?;
            let uid = pod.uid.clone();
            Some(Missing { attempt, uid })
        });
        let missing = missing.collect();
        state.sweep_at = 0;
        state.sweep();
        missing
    }

    /// A pod that a listing lacked is gone, unless another has its name meanwhile.
    pub(super) fn lose(&self, missing: &Missing) {
        let mut state = self.lock();
        if let Some(entry) = state.attempts.get_mut(&missing.attempt)
            && entry.pod.as_ref().is_some_and(|pod| pod.uid == missing.uid)
        {
            entry.lose(None);
        }
        state.drop_unused(missing.attempt);
    }

    /// Drops everything, so that whoever follows an attempt learns that nothing more will come.
    pub(super) fn close(&self) {
        self.lock().attempts.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here leaves the state half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn apply(&mut self, attempt: AttemptId, pod: &Pod) {
        // Before the first listing, whatever is known counts as known during it.
        let known = self.listing.max(1);
        let entry = self.attempts.entry(attempt).or_default();
        let observation = observe(pod);
        let handle = Handle::with(pod, &observation);
        if entry.pod.as_ref().is_some_and(|known| known.succeeds(&handle)) {
            return;
        }
        entry.known = known;
        entry.pod = Some(handle);
        entry.publish(observation);
    }

    /// Drops the entries that nobody follows and that have no pod. Amortised: the work is linear in what was added.
    fn sweep(&mut self) {
        if self.attempts.len() >= self.sweep_at {
            self.attempts.retain(|_, entry| !entry.is_unused());
            self.sweep_at = (self.attempts.len() * 2).max(64);
        }
    }

    fn drop_unused(&mut self, attempt: AttemptId) {
        if self.attempts.get(&attempt).is_some_and(Entry::is_unused) {
            self.attempts.remove(&attempt);
        }
    }
}

impl Entry {
    fn publish(&self, observation: Observation) {
        self.observed.send_if_modified(|current| {
            let changed = *current != observation;
            if changed {
                *current = observation;
            }
            changed
        });
    }

    /// The pod is there no longer. An end that was observed stays one: that the pod was cleared away afterwards
    /// changes nothing about how it went.
    fn lose(&mut self, last: Option<Observation>) {
        self.pod = None;
        self.known = 0;
        let last = last.unwrap_or_else(|| self.observed.borrow().clone());
        let finished = matches!(&*self.observed.borrow(), Observation::Finished { .. });
        match last {
            _ if finished => {}
            last @ Observation::Finished { .. } => self.publish(last),
            last => self.publish(Observation::Gone {
                steps: last.steps().to_vec(),
            }),
        }
    }

    fn is_unused(&self) -> bool {
        self.pod.is_none() && self.observed.receiver_count() == 0
    }
}

/// The attempt that a pod belongs to. Its name must fit, too: labels can be put on anything.
fn attempt_of(pod: &Pod) -> Option<AttemptId> {
    let attempt = pod::attempt(pod)?;
    (pod.metadata.name.as_deref() == Some(pod::name(attempt).as_str())).then_some(attempt)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::*;
    use crate::{
        domain::id::BuildId,
        runner::{Outcome, PendingReason},
    };

    fn attempt(number: u32) -> AttemptId {
        AttemptId {
            build: BuildId(Uuid::from_u128(7)),
            number,
        }
    }

    fn pod(number: u32, status: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": pod::name(attempt(number)), "uid": format!("uid-{number}"),
                "creationTimestamp": "2026-11-23T14:00:00Z",
                "labels": {pod::BUILD: attempt(number).build.to_string(), pod::ATTEMPT: number.to_string()},
            },
            "spec": {"containers": [], "nodeName": "node1"},
            "status": status,
        }))
        .unwrap()
    }

    /// A listing ends, and what it lacks is gone indeed.
    fn settle(index: &Index) {
        for missing in index.end_listing() {
            index.lose(&missing);
        }
    }

    fn pending() -> Value {
        json!({"phase": "Pending"})
    }

    fn running() -> Value {
        json!({"phase": "Running", "initContainerStatuses": [{
            "name": "source", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-11-23T14:00:01Z"}},
        }]})
    }

    fn failed() -> Value {
        json!({"phase": "Failed", "reason": "Evicted"})
    }

    #[test]
    fn what_the_watch_shows_reaches_who_follows() {
        let index = Index::default();
        let mut observed = index.observe(attempt(1));
        assert_eq!(*observed.borrow_and_update(), Observation::Unseen);
        index.apply(&pod(1, &pending()));
        assert!(observed.has_changed().unwrap());
        assert!(matches!(
            &*observed.borrow_and_update(),
            Observation::Pending {
                reason: PendingReason::Starting(None),
                ..
            }
        ));
        index.apply(&pod(1, &pending()));
        assert!(!observed.has_changed().unwrap(), "nothing new wakes nobody");
        assert_eq!(index.pod(attempt(1)).unwrap().uid, "uid-1");
    }

    #[test]
    fn a_deletion_keeps_the_steps() {
        let index = Index::default();
        let observed = index.observe(attempt(1));
        index.apply(&pod(1, &running()));
        index.delete(&pod(1, &running()));
        assert!(matches!(&*observed.borrow(), Observation::Gone { steps } if steps.len() == 1));
        assert_eq!(index.pod(attempt(1)), None);
    }

    #[test]
    fn an_end_outlives_its_pod() {
        let index = Index::default();
        let observed = index.observe(attempt(1));
        index.apply(&pod(1, &failed()));
        index.delete(&pod(1, &failed()));
        assert!(matches!(
            &*observed.borrow(),
            Observation::Finished {
                outcome: Outcome::FailedByNode(_),
                ..
            }
        ));
        // The end may come with the deletion only.
        let observed = index.observe(attempt(2));
        index.apply(&pod(2, &running()));
        index.delete(&pod(2, &failed()));
        assert!(matches!(&*observed.borrow(), Observation::Finished { .. }));
    }

    #[test]
    fn what_a_listing_lacks_is_gone_if_it_was_known_before() {
        let index = Index::default();
        let [seen, launched, never] = [1, 2, 3].map(|number| index.observe(attempt(number)));
        index.begin_listing();
        index.apply(&pod(1, &running()));
        settle(&index);
        index.launched(attempt(2), &pod(2, &pending()));
        index.begin_listing();
        settle(&index);
        assert!(matches!(&*seen.borrow(), Observation::Gone { steps } if steps.len() == 1));
        assert!(matches!(&*launched.borrow(), Observation::Gone { .. }));
        assert_eq!(*never.borrow(), Observation::Unseen);
    }

    #[test]
    fn what_is_launched_during_a_listing_is_not_missed_by_it() {
        let index = Index::default();
        for _ in 0..2 {
            index.begin_listing();
            let observed = index.observe(attempt(1));
            index.launched(attempt(1), &pod(1, &pending()));
            settle(&index);
            assert!(matches!(&*observed.borrow(), Observation::Pending { .. }));
            index.delete(&pod(1, &pending()));
        }
    }

    #[test]
    fn a_launch_before_the_first_listing_is_known() {
        let index = Index::default();
        let observed = index.observe(attempt(1));
        index.launched(attempt(1), &pod(1, &pending()));
        index.begin_listing();
        settle(&index);
        // The listing may have begun before: this one proves nothing. The next does.
        assert!(matches!(&*observed.borrow(), Observation::Pending { .. }));
        index.begin_listing();
        settle(&index);
        assert!(matches!(&*observed.borrow(), Observation::Gone { .. }));
    }

    #[test]
    fn the_answer_to_a_launch_does_not_hide_what_came_later() {
        let index = Index::default();
        let observed = index.observe(attempt(1));
        index.apply(&pod(1, &running()));
        index.launched(attempt(1), &pod(1, &pending()));
        assert!(matches!(&*observed.borrow(), Observation::Running { .. }));
    }

    #[test]
    fn news_of_a_predecessor_does_not_touch_its_successor() {
        let index = Index::default();
        let observed = index.observe(attempt(1));
        let old = pod(1, &running());
        let mut new = pod(1, &pending());
        new.metadata.uid = Some("uid-new".to_owned());
        index.launched(attempt(1), &new);
        index.apply(&old);
        index.delete(&old);
        assert!(matches!(&*observed.borrow(), Observation::Pending { .. }));
        index.delete(&new);
        assert!(matches!(&*observed.borrow(), Observation::Gone { .. }));
    }

    #[test]
    fn only_attempts_with_pods_are_listed() {
        let index = Index::default();
        assert_eq!(index.list(), None);
        let _observed = index.observe(attempt(3));
        index.begin_listing();
        index.apply(&pod(1, &running()));
        index.apply(&pod(2, &pending()));
        settle(&index);
        index.delete(&pod(2, &pending()));
        assert_eq!(index.list(), Some(vec![attempt(1)]));
    }

    #[test]
    fn what_nobody_follows_is_dropped() {
        let index = Index::default();
        for number in 0..10_000 {
            drop(index.observe(attempt(number)));
        }
        assert!(index.lock().attempts.len() <= 64);
        let observed = index.observe(attempt(1));
        index.apply(&pod(1, &running()));
        index.delete(&pod(1, &running()));
        assert!(index.lock().attempts.contains_key(&attempt(1)));
        drop(observed);
        index.begin_listing();
        settle(&index);
        assert_eq!(index.lock().attempts.len(), 0);
    }

    #[test]
    fn a_pod_whose_name_does_not_fit_is_not_ours() {
        let index = Index::default();
        let mut stray = pod(1, &running());
        stray.metadata.name = Some("debug".to_owned());
        index.apply(&stray);
        assert_eq!(index.pod(attempt(1)), None);
    }

    #[test]
    fn closing_tells_who_follows() {
        let index = Index::default();
        let observed = index.observe(attempt(1));
        index.close();
        assert!(observed.has_changed().is_err());
    }

    #[test]
    fn old_news_of_a_pod_changes_nothing() {
        let index = Index::default();
        let observed = index.observe(attempt(1));
        let at = |version: u32, status: &Value| {
            let mut pod = pod(1, status);
            pod.metadata.resource_version = Some(version.to_string());
            pod
        };
        index.apply(&at(9, &pending()));
        for (version, status) in [(10, running()), (9, pending()), (10, running())] {
            index.apply(&at(version, &status));
            assert!(matches!(&*observed.borrow(), Observation::Running { .. }));
        }
        // A deletion is a change of its own.
        index.delete(&at(11, &failed()));
        assert!(matches!(&*observed.borrow(), Observation::Finished { .. }));
    }

    #[test]
    fn what_a_listing_lacks_may_have_been_replaced() {
        let index = Index::default();
        let observed = index.observe(attempt(1));
        index.begin_listing();
        index.apply(&pod(1, &running()));
        assert_eq!(index.end_listing(), []);
        index.begin_listing();
        let missing = index.end_listing();
        assert!(matches!(&*observed.borrow(), Observation::Running { .. }), "not yet");
        let mut new = pod(1, &pending());
        new.metadata.uid = Some("uid-new".to_owned());
        new.metadata.creation_timestamp = serde_json::from_value(json!("2026-11-23T14:00:09Z")).unwrap();
        index.apply(&new);
        index.lose(&missing[0]);
        assert!(matches!(&*observed.borrow(), Observation::Pending { .. }));
    }
}
