//! The database's time, told by every replica whatever its machine's clock says. Between readings it goes by the clock
//! that nobody sets, so that a machine whose time is corrected doesn't jump either.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use super::Error;
use crate::domain::clock::Clock;

/// Time between readings.
const EVERY: Duration = Duration::from_secs(10);
/// Time between tries while the database doesn't answer.
const RETRY: Duration = Duration::from_secs(1);
/// A reading that took longer than this says less than an earlier one.
const SLOW: Duration = Duration::from_secs(1);
/// What a machine's clock may be off before somebody should know.
const WORTH_SAYING: TimeDelta = TimeDelta::seconds(5);

/// Tells the database's time, as soon as that was read once; until then what another clock says.
pub struct DatabaseClock {
    before: Arc<dyn Clock>,
    reading: RwLock<Option<Reading>>,
}

#[derive(Clone, Copy)]
struct Reading {
    time: DateTime<Utc>,
    taken: Instant,
}

impl DatabaseClock {
    /// A clock that goes by `before` until it was read for the first time.
    pub fn new(before: Arc<dyn Clock>) -> Self {
        Self {
            before,
            reading: RwLock::default(),
        }
    }

    fn reading(&self) -> Option<Reading> {
        *self.reading.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the database's time.
    pub async fn read(&self, pool: &PgPool) -> Result<(), Error> {
        let mut connection = pool.acquire().await?;
        let asked = Instant::now();
        let time = sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "time!""#)
            .fetch_one(&mut *connection)
            .await?;
        let took = asked.elapsed();
        let known = self.reading();
        if known.is_some() && took > SLOW {
            return Ok(());
        }
        // It was told somewhere between the question and the answer.
        let taken = asked + took / 2;
        *self.reading.write().unwrap_or_else(PoisonError::into_inner) = Some(Reading { time, taken });
        let off = self.before.now() - time;
        if known.is_none() && off.abs() > WORTH_SAYING {
            tracing::warn!(
                seconds = off.num_seconds(),
                "this machine's clock differs from the database's, whose time is used; the machine's should be corrected"
            );
        }
        Ok(())
    }

    /// Reads it now and then until told to stop.
    pub async fn follow(&self, pool: &PgPool, stop: &CancellationToken) {
        loop {
            let Some(read) = stop.run_until_cancelled(self.read(pool)).await else {
                return;
            };
            let pause = if read.is_ok() { EVERY } else { RETRY };
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }
}

impl Clock for DatabaseClock {
    fn now(&self) -> DateTime<Utc> {
        let Some(Reading { time, taken }) = self.reading() else {
            return self.before.now();
        };
        // A reading is at most seconds old.
        let since = TimeDelta::from_std(taken.elapsed()).unwrap_or_default();
        (time + since).trunc_subsecs(6)
    }
}
