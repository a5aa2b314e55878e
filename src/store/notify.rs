//! Hints between replicas by LISTEN/NOTIFY. A hint makes a reader look; what it looks at is the tables, and it looks
//! now and then without any hint too, so that a lost one costs time and nothing else.

use std::fmt::Write as _;

use sqlx::{
    PgPool,
    postgres::{PgListener, PgNotification},
};

use super::Error;
use crate::domain::id::BuildId;

const CHANNEL: &str = "kiln";
/// Postgres refuses payloads of 8000 bytes.
const MAX_PAYLOAD: usize = 7900;

/// Something that happened at some replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// A build waits in the queue.
    Queued,
    /// A live build is to be stopped.
    Cancel(BuildId),
    /// A build has entered another state.
    Change,
    /// A journal has grown to this head.
    Head(BuildId, i64),
}

fn encode(hints: &[Hint]) -> Vec<String> {
    let mut payloads = vec![String::new()];
    for hint in hints {
        let mut word = String::new();
        // Writing to a String can't fail.
        let _ = match hint {
            Hint::Queued => write!(word, "q "),
            Hint::Change => write!(word, "s "),
            Hint::Cancel(build) => write!(word, "c{} ", build.0.simple()),
            Hint::Head(build, head) => write!(word, "h{}:{head} ", build.0.simple()),
        };
        match payloads.last_mut() {
            Some(last) if last.len() + word.len() <= MAX_PAYLOAD => last.push_str(&word),
            _ => payloads.push(word),
        }
    }
    payloads
}

fn decode(payload: &str) -> impl Iterator<Item = Hint> + '_ {
    payload
        .split_ascii_whitespace()
        .filter_map(|word| match word.split_at_checked(1)? {
            ("q", "") => Some(Hint::Queued),
            ("s", "") => Some(Hint::Change),
            ("c", build) => Some(Hint::Cancel(build.parse().ok()?)),
            ("h", rest) => {
                let (build, head) = rest.split_once(':')?;
                Some(Hint::Head(build.parse().ok()?, head.parse().ok()?))
            }
            _ => None,
        })
}

/// Sends hints to every replica, this one included. Commits that notify wait for each other in Postgres: gather hints
/// and call this a few times a second at most.
pub async fn send(pool: &PgPool, hints: &[Hint]) -> Result<(), Error> {
    if hints.is_empty() {
        return Ok(());
    }
    let payloads = encode(hints);
    sqlx::query!(
        "SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload",
        CHANNEL,
        &payloads,
    )
    .fetch_all(pool)
    .await?;
    Ok(())
}

/// A connection that hears hints.
pub struct Listener(PgListener);

impl Listener {
    /// Opens a connection of its own and listens.
    pub async fn connect(pool: &PgPool) -> Result<Self, Error> {
        let mut listener = PgListener::connect_with(pool).await?;
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok(Self(listener))
    }

    /// Waits for the next hints. `None` when the connection broke: hints may have been lost.
    pub async fn next(&mut self) -> Result<Option<Vec<Hint>>, Error> {
        let notification: Option<PgNotification> = self.0.try_recv().await?;
        Ok(notification.map(|notification| decode(notification.payload()).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_survive_the_trip_in_bounded_payloads() {
        let mut hints = vec![Hint::Queued, Hint::Change];
        for head in 0..1000 {
            hints.push(Hint::Head(BuildId::new(), head));
            hints.push(Hint::Cancel(BuildId::new()));
        }
        let payloads = encode(&hints);
        assert!(payloads.iter().all(|payload| payload.len() < 8000));
        let decoded: Vec<_> = payloads.iter().flat_map(|payload| decode(payload)).collect();
        assert_eq!(decoded, hints);
        assert_eq!(decode("x q cnonsense h1:2 h").collect::<Vec<_>>(), [Hint::Queued]);
    }
}
