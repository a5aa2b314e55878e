//! Many equal questions that are asked at the same time become one statement. Short requests spend most of their time
//! on the way to Postgres and back, and most of Postgres' on what a statement costs whatever it does; under load both
//! are shared. A question is only ever answered by a statement that began after it was asked.

use std::{
    io, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::{PgConnection, PgPool, Postgres, pool::PoolConnection};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout_at},
};

use super::Error;

/// Statements of a kind that are under way at the same time. With a second one Postgres has something to do while the
/// first one waits for the disk; more would only make them smaller.
const RUNS: usize = 2;
/// Questions of one statement.
const LARGEST: usize = 64;
/// A connection is kept this long for questions to come: giving it back costs a round trip.
const LINGER: Duration = Duration::from_millis(50);

/// A statement that answers any number of questions.
pub(super) trait Statement: Send + Sync + 'static {
    type Question: Send + Sync;
    type Answer: Send;

    /// As many answers as questions, in their order. An error means that nothing of it took effect, unless it is
    /// [`Error::Unavailable`].
    fn ask(
        connection: &mut PgConnection,
        questions: &[Self::Question],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, Error>> + Send;
}

/// Gathers questions. Cheap to clone.
pub(super) struct Gather<S: Statement>(Arc<Inner<S>>);

struct Inner<S: Statement> {
    pool: PgPool,
    state: Mutex<State<S>>,
    asked: Notify,
}

struct State<S: Statement> {
    waiting: Batch<S>,
    runs: usize,
    /// Runs that have a connection and nothing to do.
    lingering: usize,
}

/// Questions, and at the same places who asked them.
struct Batch<S: Statement> {
    questions: Vec<S::Question>,
    askers: Vec<Asker<S>>,
}

type Asker<S> = oneshot::Sender<Result<<S as Statement>::Answer, Error>>;

impl<S: Statement> Batch<S> {
    const fn new() -> Self {
        Self {
            questions: Vec::new(),
            askers: Vec::new(),
        }
    }

    /// The first of them; the others stay.
    fn take(&mut self, most: usize) -> Self {
        let most = self.questions.len().min(most);
        let rest = Self {
            questions: self.questions.split_off(most),
            askers: self.askers.split_off(most),
        };
        mem::replace(self, rest)
    }
}

impl<S: Statement> Clone for Gather<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Statement> Gather<S> {
    pub(super) fn new(pool: PgPool) -> Self {
        Self(Arc::new(Inner {
            pool,
            state: Mutex::new(State {
                waiting: Batch::new(),
                runs: 0,
                lingering: 0,
            }),
            asked: Notify::new(),
        }))
    }

    /// Asks one question.
    pub(super) async fn ask(&self, question: S::Question) -> Result<S::Answer, Error> {
        let (answer, answered) = oneshot::channel();
        let begin = {
            let mut state = self.0.state();
            state.waiting.questions.push(question);
            state.waiting.askers.push(answer);
            let begin = state.lingering == 0 && state.runs < RUNS;
            state.runs += usize::from(begin);
            begin
        };
        if begin {
            // It ends by itself, soon after there is nothing left to ask. It isn't a part of this request, because the
            // answers to others depend on it.
            let run = Run {
                inner: Arc::clone(&self.0),
                over: false,
            };
            tokio::spawn(run.go());
        } else {
            self.0.asked.notify_one();
        }
        answered
            .await
            .unwrap_or(Err(Error::Unavailable(sqlx::Error::WorkerCrashed)))
    }
}

impl<S: Statement> Inner<S> {
    fn state(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody else may be waiting for a connection.
    fn scarce(&self) -> bool {
        self.pool.num_idle() == 0 && self.pool.size() >= self.pool.options().get_max_connections()
    }
}

/// Asks what waits until nothing does.
struct Run<S: Statement> {
    inner: Arc<Inner<S>>,
    over: bool,
}

impl<S: Statement> Drop for Run<S> {
    fn drop(&mut self) {
        // Only a panic ends a run while there may be questions: those who wait for it hear of it.
        if !self.over {
            let mut state = self.inner.state();
            state.runs -= 1;
            state.waiting = Batch::new();
        }
    }
}

impl<S: Statement> Run<S> {
    async fn go(mut self) {
        let mut kept: Option<PoolConnection<Postgres>> = None;
        while let Some(batch) = self.next(kept.is_some()).await {
            let connection = match kept.take() {
                Some(connection) => Ok(connection),
                None => self.inner.pool.acquire().await,
            };
            match connection {
                Ok(mut connection) => {
                    let unbroken = answer(&mut connection, batch).await;
                    // One that failed, or that others may wait for, goes back to the pool, which tests it.
                    kept = (unbroken && !self.inner.scarce()).then_some(connection);
                }
                Err(error) => refuse(batch, error.into()),
            }
        }
    }

    /// What waits, at most one statement's worth. `None` when this run is over.
    async fn next(&mut self, linger: bool) -> Option<Batch<S>> {
        let deadline = Instant::now() + LINGER;
        let mut patient = linger;
        loop {
            {
                let mut state = self.inner.state();
                if !state.waiting.questions.is_empty() {
                    return Some(state.waiting.take(LARGEST));
                }
                if !patient {
                    // Under the same lock as the look at what waits, so that whoever asks next begins another run.
                    state.runs -= 1;
                    self.over = true;
                    return None;
                }
                state.lingering += 1;
            }
            patient = timeout_at(deadline, self.inner.asked.notified()).await.is_ok();
            self.inner.state().lingering -= 1;
        }
    }
}

/// Whether the connection is as good as before.
async fn answer<S: Statement>(connection: &mut PgConnection, batch: Batch<S>) -> bool {
    match S::ask(connection, &batch.questions).await {
        Ok(answers) => {
            // So that whoever asked holds what they share alone.
            drop(batch.questions);
            for (asker, answer) in batch.askers.into_iter().zip(answers) {
                // Whoever asked may be gone.
                let _ = asker.send(Ok(answer));
            }
            true
        }
        // One bad question must not take the others with it.
        Err(error) if batch.askers.len() > 1 && !matches!(error, Error::Unavailable(_)) => {
            for (question, asker) in batch.questions.into_iter().zip(batch.askers) {
                let outcome = S::ask(connection, &[question]).await;
                let answer = outcome.and_then(|mut answers| answers.pop().ok_or(Error::Conflict));
                let _ = asker.send(answer);
            }
            false
        }
        Err(error) => {
            refuse(batch, error);
            false
        }
    }
}

/// Tells everybody why there is no answer.
fn refuse<S: Statement>(batch: Batch<S>, error: Error) {
    let words = error.to_string();
    let mut error = Some(error);
    for asker in batch.askers {
        let again = || Error::Unavailable(sqlx::Error::Io(io::Error::other(words.clone())));
        let _ = asker.send(Err(error.take().unwrap_or_else(again)));
    }
}
