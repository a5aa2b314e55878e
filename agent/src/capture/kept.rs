//! The end of an output, kept in memory.

use std::sync::{Mutex, PoisonError};

/// The last bytes of something.
#[derive(Debug)]
pub(crate) struct Kept {
    limit: usize,
    bytes: Vec<u8>,
}

impl Kept {
    /// Keeps the last `limit` bytes.
    pub(crate) const fn new(limit: usize) -> Self {
        Self {
            limit,
            bytes: Vec::new(),
        }
    }

    /// Adds bytes at the end.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let news = &bytes[bytes.len().saturating_sub(self.limit)..];
        if self.bytes.len() + news.len() > 2 * self.limit {
            let surplus = (self.bytes.len() + news.len()).saturating_sub(self.limit);
            self.bytes.drain(..surplus.min(self.bytes.len()));
        }
        self.bytes.extend_from_slice(news);
    }

    /// What was kept, as text.
    pub(crate) fn text(&self) -> String {
        let start = self.bytes.len().saturating_sub(self.limit);
        String::from_utf8_lossy(&self.bytes[start..]).into_owned()
    }
}

/// The same, filled by another thread.
#[derive(Debug)]
pub(crate) struct SharedKept(Mutex<Kept>);

impl SharedKept {
    /// Keeps the last `limit` bytes.
    pub(crate) const fn new(limit: usize) -> Self {
        Self(Mutex::new(Kept::new(limit)))
    }

    /// Adds bytes at the end.
    pub(crate) fn push(&self, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }

    /// What was kept, as text.
    pub(crate) fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).text()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_the_end_of_what_was_pushed(portions in prop::collection::vec("[a-z]{0,40}", 0..20)) {
            let mut kept = Kept::new(25);
            for portion in &portions {
                kept.push(portion.as_bytes());
            }
            let all = portions.concat();
            prop_assert_eq!(kept.text(), &all[all.len().saturating_sub(25)..]);
        }
    }
}
