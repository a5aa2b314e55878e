//! How long to wait, for what.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

/// First wait after a failure.
const FIRST: Duration = Duration::from_millis(100);

/// Longest that a service may ask for.
const MAX_ASKED: Duration = Duration::from_mins(1);

/// The times by which a shipper lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    /// Between small pushes, so that lines come in groups.
    pub(crate) gather: Duration,
    /// Without anything to say.
    pub(crate) heartbeat: Duration,
    /// The longest between two tries.
    pub(crate) retry: Duration,
    /// After being told to end, when the service was never reached.
    pub(crate) unreached: Duration,
    /// After being told to end.
    pub(crate) give_up: Duration,
    /// After which it ends without being told to, when all the while no step has run and the service has not answered.
    pub(crate) alone: Option<Duration>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            gather: Duration::from_millis(100),
            heartbeat: Duration::from_secs(2),
            retry: Duration::from_secs(10),
            unreached: Duration::from_secs(15),
            give_up: Duration::from_mins(10),
            alone: None,
        }
    }
}

/// Waits that double with each failure.
#[derive(Debug)]
pub(super) struct Backoff {
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(max: Duration) -> Self {
        Self {
            max,
            next: FIRST.min(max),
        }
    }

    /// It went well.
    pub(super) fn reset(&mut self) {
        self.next = FIRST.min(self.max);
    }

    /// The next wait: what the service asks for, or else somewhere in the upper half of the doubled time. `random` is
    /// from all of its range.
    pub(super) fn next(&mut self, asked: Option<Duration>, random: u32) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.max);
        let jittered = wait / 2 + wait.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0);
        asked.map_or(jittered, |asked| asked.min(MAX_ASKED) + jittered)
    }
}

/// Differs from call to call and from process to process, which is all that is asked of it here.
pub(super) fn random() -> u32 {
    u32::try_from(RandomState::new().hash_one(0) & u64::from(u32::MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn waits_grow_up_to_the_longest(randoms in prop::collection::vec(any::<u32>(), 20), asked in 0_u64..100) {
            let max = Duration::from_secs(10);
            let mut backoff = Backoff::new(max);
            let mut expected = FIRST;
            for &random in &randoms {
                let wait = backoff.next(None, random);
                prop_assert!(wait >= expected / 2 && wait <= expected);
                expected = (expected * 2).min(max);
            }
            let asked = Duration::from_secs(asked);
            prop_assert!(backoff.next(Some(asked), 0) >= asked.min(MAX_ASKED));
            prop_assert!(backoff.next(Some(asked), u32::MAX) <= asked.min(MAX_ASKED) + max);
            backoff.reset();
            prop_assert!(backoff.next(None, u32::MAX) <= FIRST);
        }
    }
}
