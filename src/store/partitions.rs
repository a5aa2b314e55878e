//! Partitions of the journal, made ahead of their time and dropped once nobody needs them.
//!
//! Build ids begin with their time, so ranges of ids are ranges of time, and whoever reads or writes one build's entries
//! touches one partition. What no partition takes goes to the default one: nothing ever fails for want of a partition,
//! whatever the clocks say.

use chrono::{DateTime, DurationRound as _, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{Error, rows::Place};

/// Key of the advisory lock of those who make and drop partitions.
const LOCK: i64 = 0x6b69_6c6e_0002;
/// Partitions that begin after the present one and are there ahead of their time.
const AHEAD: i32 = 2;
/// How long the time of a partition has been over when it may go: ids of slow clocks still come in.
const REST: TimeDelta = TimeDelta::days(1);
/// How long readers and writers of the journal may be held up by a change of its partitions, which waits for those
/// before it no longer than this.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '300ms'";

/// Time that one partition covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    /// Midnight to midnight, UTC.
    Day,
    /// From Monday, 0:00 UTC.
    #[default]
    Week,
}

impl Period {
    const fn length(self) -> TimeDelta {
        match self {
            Self::Day => TimeDelta::days(1),
            Self::Week => TimeDelta::weeks(1),
        }
    }

    /// When the period of a moment begins.
    fn begin(self, at: DateTime<Utc>) -> DateTime<Utc> {
        // The epoch was a Thursday.
        let shift = match self {
            Self::Day => TimeDelta::zero(),
            Self::Week => TimeDelta::days(3),
        };
        (at + shift)
            .duration_trunc(self.length())
            .map_or(at, |truncated| truncated - shift)
    }
}

/// A partition, by its name and the end of its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The table.
    pub name: String,
    /// The end of its time; `None` for the default one.
    pub high: Option<DateTime<Utc>>,
}

/// The partitions there are, in the order of time.
pub async fn list(connection: &mut PgConnection) -> Result<Vec<Partition>, Error> {
    let rows = sqlx::query!(
        r#"SELECT c.relname::text AS "name!",
                  substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''([0-9a-f-]{36})''\)')::uuid AS high
           FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
           WHERE i.inhparent = 'journal'::regclass
           ORDER BY high NULLS LAST"#,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let high = row.high.map(|high| {
                let place = Place {
                    table: "pg_class",
                    row: &row.name,
                };
                time_of(high).ok_or_else(|| place.inconsistent("relpartbound", "not a time"))
            });
            Ok(Partition {
                high: high.transpose()?,
                name: row.name,
            })
        })
        .collect()
}

/// The time in an id.
fn time_of(id: Uuid) -> Option<DateTime<Utc>> {
    let milliseconds = i64::try_from(id.as_u128() >> 80).ok()?;
    DateTime::from_timestamp_millis(milliseconds)
}

/// What was changed, and what there is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Partitions that were made.
    pub made: Vec<String>,
    /// Partitions that were dropped.
    pub dropped: Vec<String>,
    /// How many there are, the default one included.
    pub count: usize,
}

/// Makes partitions up to a while after `now`, and drops those whose time is over and that hold no entry of any build
/// that is there. One replica does it at a time; `None` when another is at it.
pub async fn keep(pool: &PgPool, period: Period, now: DateTime<Utc>) -> Result<Option<Kept>, Error> {
    let mut kept = Kept::default();
    let present = loop {
        let Some(mut transaction) = change(pool).await? else {
            return Ok(None);
        };
        let present = list(&mut transaction).await?;
        let known_until = present.iter().filter_map(|partition| partition.high).max();
        let Some((low, high)) = due(known_until, period, now).first().copied() else {
            transaction.rollback().await?;
            break present;
        };
        let name = format!("journal_{}", low.format("%Y%m%d"));
        sqlx::query!("SELECT add_journal_partition($1, $2, $3)", name, low, high)
            .fetch_one(&mut *transaction)
            .await?;
        transaction.commit().await?;
        kept.made.push(name);
    };
    kept.count = present.len();
    let over = |partition: &Partition| partition.high.is_some_and(|high| high + REST <= now);
    for partition in present.iter().filter(|partition| over(partition)) {
        let Some(mut transaction) = change(pool).await? else {
            return Ok(None);
        };
        // Another may have been quicker.
        if list(&mut transaction).await?.contains(partition)
            && sqlx::query_scalar!(r#"SELECT drop_journal_partition($1) AS "dropped!""#, partition.name)
                .fetch_one(&mut *transaction)
                .await?
        {
            kept.dropped.push(partition.name.clone());
            kept.count -= 1;
        }
        transaction.commit().await?;
    }
    Ok(Some(kept))
}

/// A transaction for one change, which waits for others no longer than it makes others wait. `None` while another
/// process changes partitions.
async fn change(pool: &PgPool) -> Result<Option<sqlx::Transaction<'static, sqlx::Postgres>>, Error> {
    let mut transaction = pool.begin().await?;
    let free = sqlx::query_scalar!(r#"SELECT pg_try_advisory_xact_lock($1) AS "free!""#, LOCK)
        .fetch_one(&mut *transaction)
        .await?;
    if !free {
        transaction.rollback().await?;
        return Ok(None);
    }
    sqlx::query(LOCK_TIMEOUT).execute(&mut *transaction).await?;
    Ok(Some(transaction))
}

/// The times of the partitions to be made.
fn due(known_until: Option<DateTime<Utc>>, period: Period, now: DateTime<Utc>) -> Vec<(DateTime<Utc>, DateTime<Utc>)> {
    let begin = period.begin(now);
    let end = begin + period.length() * (AHEAD + 1);
    // Ranges can't overlap; times in which nobody made partitions stay with the default one.
    let mut low = known_until.map_or(begin, |known| known.max(begin));
    let mut due = Vec::new();
    while low < end {
        let high = period.begin(low) + period.length();
        due.push((low, high));
        low = high;
    }
    due
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    #[test]
    fn weeks_begin_on_monday() {
        let begin = Period::Week.begin(time("2026-11-25T13:00:00Z"));
        assert_eq!(begin, time("2026-11-23T00:00:00Z"));
        assert_eq!(Period::Week.begin(begin), begin);
        assert_eq!(
            Period::Day.begin(time("2026-11-25T13:00:00Z")),
            time("2026-11-25T00:00:00Z")
        );
    }

    proptest! {
        #[test]
        fn partitions_follow_each_other_and_reach_ahead(
            known in proptest::option::of(0_i64..4_000_000_000), now in 0_i64..4_000_000_000, daily in any::<bool>(),
        ) {
            let period = if daily { Period::Day } else { Period::Week };
            let at = |seconds| DateTime::from_timestamp(seconds, 0).expect("a time");
            let known = known.map(at);
            let now = at(now);
            let due = due(known, period, now);
            for pair in due.windows(2) {
                prop_assert_eq!(pair[0].1, pair[1].0);
            }
            for (low, high) in &due {
                prop_assert!(low < high && known.is_none_or(|known| *low >= known));
            }
            let until = due.last().map(|last| last.1).into_iter().chain(known).max().expect("some");
            prop_assert!(until >= now + period.length() * 2);
            prop_assert!(due.len() <= 3);
        }
    }
}
