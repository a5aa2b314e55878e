//! Whose archive is taken next. A replica takes a few at a time, and of one project fewer, so that nobody's slow
//! connections keep all others waiting.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::domain::project::ProjectName;

/// The turns of one replica.
#[derive(Debug)]
pub(super) struct Turns {
    all: Arc<Semaphore>,
    /// Of the projects whose archives are taken or wait.
    projects: Mutex<HashMap<ProjectName, Weak<Semaphore>>>,
    share: usize,
    patience: Duration,
}

/// The right to be taken, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _of_project: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Turns {
    /// `all` at a time, at most `share` of one project; whoever comes waits no longer than `patience`.
    pub(super) fn new(all: u32, share: u32, patience: Duration) -> Self {
        let permits = |count| {
            usize::try_from(count)
                .unwrap_or(usize::MAX)
                .clamp(1, Semaphore::MAX_PERMITS)
        };
        Self {
            all: Arc::new(Semaphore::new(permits(all))),
            projects: Mutex::default(),
            share: permits(share),
            patience,
        }
    }

    /// A turn, in the order of asking; `None` when it didn't come in time.
    pub(super) async fn take(&self, project: &ProjectName) -> Option<Turn> {
        let own = self.of_project(project);
        let turn = async {
            // Its own first: who waits for the project's others holds nobody up. Neither is ever closed.
            let of_project = own.acquire_owned().await.ok()?;
            let of_all = Arc::clone(&self.all).acquire_owned().await.ok()?;
            Some(Turn {
                _of_project: of_project,
                _of_all: of_all,
            })
        };
        tokio::time::timeout(self.patience, turn).await.ok().flatten()
    }

    fn of_project(&self, project: &ProjectName) -> Arc<Semaphore> {
        // Every entry is valid at any time.
        let mut projects = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = projects.get(project).and_then(Weak::upgrade) {
            return own;
        }
        projects.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(Semaphore::new(self.share));
        projects.insert(project.clone(), Arc::downgrade(&own));
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(name: &str) -> ProjectName {
        name.parse().expect("a name")
    }

    #[tokio::test(start_paused = true)]
    async fn a_project_has_its_share_and_nobody_waits_for_ever() {
        let turns = Turns::new(3, 2, Duration::from_secs(30));
        let (greedy, modest) = (project("greedy"), project("modest"));
        let first = turns.take(&greedy).await.expect("free");
        let _second = turns.take(&greedy).await.expect("within its share");
        let began = tokio::time::Instant::now();
        assert!(turns.take(&greedy).await.is_none(), "more than its share");
        assert_eq!(began.elapsed(), Duration::from_secs(30));
        let third = turns.take(&modest).await.expect("the others' share");
        assert!(turns.take(&modest).await.is_none(), "all are taken");
        drop(first);
        let fourth = turns.take(&modest).await.expect("free again");
        drop((third, fourth));
        assert!(turns.take(&project("new")).await.is_some());
        let known = turns.projects.lock().expect("whole").len();
        assert_eq!(known, 2, "those who are done are forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_leaves_no_trace() {
        let turns = Turns::new(1, 1, Duration::from_secs(1));
        let own = project("own");
        let held = turns.take(&own).await.expect("free");
        assert!(turns.take(&own).await.is_none());
        drop(held);
        assert!(turns.take(&own).await.is_some());
    }
}
