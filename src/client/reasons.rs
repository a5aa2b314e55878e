//! Why a build that is followed doesn't go on: the service is asked while nothing is heard of it.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{api::Api, error::ClientError, wire::Queue};

/// Silence after which it is asked for the first time, and the longest from one time to the next.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A build that is asked about, by a task that ends with this.
pub(super) struct Reasons {
    heard: Arc<Notify>,
    answers: mpsc::Receiver<Queue>,
    _task: AbortOnDropHandle<()>,
}

impl Reasons {
    pub(super) fn start(api: &Api, id: &str) -> Self {
        let (sender, answers) = mpsc::channel(1);
        let heard = Arc::new(Notify::new());
        let (api, id) = (api.clone(), id.to_owned());
        let listens = Arc::clone(&heard);
        let task = async move {
            ask_in_silence(|| queue(&api, &id), &listens, &sender).await;
        };
        Self {
            heard,
            answers,
            _task: AbortOnDropHandle::new(tokio::spawn(task)),
        }
    }

    /// Something was heard of the build.
    pub(super) fn heard(&self) {
        self.heard.notify_one();
    }

    /// The next answer; `None` when there won't be any more. Can be dropped and called again.
    pub(super) async fn next(&mut self) -> Option<Queue> {
        self.answers.recv().await
    }
}

/// What a build waits for.
pub(super) async fn queue(api: &Api, id: &str) -> Result<Queue, ClientError> {
    api.json(api.get(&["v1", "builds", id, "queue"])).await
}

/// Asks whenever nothing was heard for long enough, less and less often, until nobody listens or the service refuses. One
/// that is away is asked again: whoever follows the build says that.
async fn ask_in_silence<F: Future<Output = Result<Queue, ClientError>>>(
    ask: impl Fn() -> F,
    heard: &Notify,
    tell: &mpsc::Sender<Queue>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        if timeout(pause, heard.notified()).await.is_ok() {
            pause = FIRST_PAUSE;
            continue;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        match ask().await {
            Ok(queue) => {
                if tell.send(queue).await.is_err() {
                    return;
                }
            }
            Err(error) if error.is_passing() => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::time::{Instant, sleep};
    use url::Url;

    use super::*;

    fn away() -> ClientError {
        ClientError::Lost {
            url: Url::parse("http://kiln.example").expect("a URL"),
            instead: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_asked_in_silence_only_and_less_and_less_often() {
        let begun = Instant::now();
        let asked = RefCell::new(Vec::new());
        let heard = Notify::new();
        let (sender, mut answers) = mpsc::channel(1);
        let ask = || async {
            asked.borrow_mut().push(begun.elapsed().as_secs());
            match asked.borrow().len() {
                2 => Err(away()),
                _ => Ok(Queue::default()),
            }
        };
        let talk = async {
            for _ in 0..100 {
                heard.notify_one();
                sleep(Duration::from_secs(1)).await;
            }
        };
        let listen = async {
            for _ in 0..5 {
                answers.recv().await.expect("an answer");
            }
            answers.close();
        };
        tokio::join!(ask_in_silence(ask, &heard, &sender), talk, listen);
        // The last word was heard after 99 seconds. The sixth answer finds nobody.
        assert_eq!(*asked.borrow(), [101, 105, 113, 129, 159, 189, 219]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_ends_it() {
        let refusal = serde_json::json!({"status": 404, "code": "not_found", "title": "No"});
        let (sender, mut answers) = mpsc::channel(1);
        let ask = || async {
            let problem = serde_json::from_value(refusal.clone()).expect("a problem");
            Err(ClientError::Problem(Box::new(problem)))
        };
        ask_in_silence(ask, &Notify::new(), &sender).await;
        drop(sender);
        assert!(answers.recv().await.is_none());
    }
}
