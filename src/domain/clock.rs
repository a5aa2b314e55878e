//! Time as an argument, so that tests decide what time it is.

use chrono::{DateTime, SubsecRound, Utc};

/// Tells the time. What decides between replicas (leases, queue order) uses the database's clock instead.
pub trait Clock: Send + Sync + 'static {
    /// The current time in UTC, cut to the microseconds that Postgres keeps.
    fn now(&self) -> DateTime<Utc>;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> DateTime<Utc> {
        Utc::now().trunc_subsecs(6)
    }
}
