//! Cancelling a build that is followed, by a service that may be away just now.

use std::time::Duration;

use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{api::Api, error::ClientError};

/// How long a service that is away is asked again.
const PATIENCE: Duration = Duration::from_mins(2);
/// Pause before it is asked for the second time, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What a canceller tells.
#[derive(Debug)]
pub(super) enum Told {
    /// The service is away; it is asked again. Told once.
    Away,
    /// The build is being cancelled, or over already.
    Accepted,
    /// The service refuses.
    Refused(ClientError),
    /// The service was away for too long.
    GivenUp(ClientError),
}

/// A build that is being cancelled, by a task that ends with this.
pub(super) struct Canceller {
    told: mpsc::Receiver<Told>,
    _task: AbortOnDropHandle<()>,
}

impl Canceller {
    pub(super) fn start(api: &Api, id: &str) -> Self {
        let (sender, told) = mpsc::channel(2);
        let (api, id) = (api.clone(), id.to_owned());
        let task = async move {
            insist(|| cancel(api.clone(), id.clone()), &sender).await;
        };
        Self {
            told,
            _task: AbortOnDropHandle::new(tokio::spawn(task)),
        }
    }

    /// What comes of it; `None` once that has been told. Can be dropped and called again.
    pub(super) async fn next(&mut self) -> Option<Told> {
        self.told.recv().await
    }
}

async fn cancel(api: Api, id: String) -> Result<(), ClientError> {
    match api.send(api.post(&["v1", "builds", &id, "cancel"])).await {
        Ok(_) => Ok(()),
        // It was quicker; its end says how.
        Err(ClientError::Problem(problem)) if problem.code == "build_finished" => Ok(()),
        Err(error) => Err(error),
    }
}

/// Asks until there is an answer, or patience ends.
async fn insist<F: Future<Output = Result<(), ClientError>>>(ask: impl Fn() -> F, tell: &mpsc::Sender<Told>) {
    let begun = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut first = true;
    let outcome = loop {
        match ask().await {
            Ok(()) => break Told::Accepted,
            Err(error) if !error.is_passing() => break Told::Refused(error),
            Err(error) if begun.elapsed() + pause > PATIENCE => break Told::GivenUp(error),
            Err(_) => {}
        }
        // Nobody needs to be told who doesn't listen.
        if std::mem::take(&mut first) && tell.send(Told::Away).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    };
    let _ = tell.send(outcome).await;
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use serde_json::json;
    use url::Url;

    use super::*;

    fn away() -> ClientError {
        ClientError::Lost {
            url: Url::parse("http://kiln.example").expect("a URL"),
            instead: None,
        }
    }

    async fn told<F: Future<Output = Result<(), ClientError>>>(ask: impl Fn() -> F) -> Vec<Told> {
        let (sender, mut told) = mpsc::channel(2);
        insist(ask, &sender).await;
        drop(sender);
        let mut all = Vec::new();
        while let Some(one) = told.recv().await {
            all.push(one);
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_comes_back_is_asked_again() {
        let left = Cell::new(4);
        let begun = Instant::now();
        let told = told(|| async {
            match left.replace(left.get() - 1) {
                0 => Ok(()),
                _ => Err(away()),
            }
        });
        assert!(matches!(told.await[..], [Told::Away, Told::Accepted]));
        assert_eq!(begun.elapsed(), Duration::from_millis(500 + 1000 + 2000 + 4000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_stays_away_is_given_up() {
        let begun = Instant::now();
        let told = told(|| async { Err(away()) }).await;
        assert!(matches!(told[..], [Told::Away, Told::GivenUp(_)]), "{told:?}");
        assert!(begun.elapsed() > Duration::from_secs(100) && begun.elapsed() <= PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_final() {
        let refusal = json!({"status": 403, "code": "forbidden", "title": "No"});
        let told = told(|| async {
            let problem = serde_json::from_value(refusal.clone()).expect("a problem");
            Err(ClientError::Problem(Box::new(problem)))
        });
        assert!(matches!(told.await[..], [Told::Refused(_)]));
    }
}
