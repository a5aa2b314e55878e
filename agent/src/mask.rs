//! Keeps secrets out of what a step prints: each of their forms is replaced by `***`.
//!
//! Text arrives in lines, or in pieces of a line that is very long. A form that lies across pieces is found, too: of a
//! line that goes on, as much is held back as the longest form takes.

mod forms;

use std::{borrow::Cow, ops::Range};

use aho_corasick::AhoCorasick;

pub(crate) use self::forms::read;

/// What stands for a secret. No secret that is masked is shorter.
const MASK: &[u8] = b"***";

/// Finds secrets.
#[derive(Debug)]
pub(crate) struct Masker {
    forms: AhoCorasick,
    longest: usize,
}

/// The end of a line that goes on, of which it isn't known whether a secret begins in it.
#[derive(Debug, Default)]
pub(crate) struct Held {
    bytes: Vec<u8>,
    /// So many bytes at the front belong to a secret that is masked already.
    covered: usize,
}

impl Masker {
    /// For all forms of these secrets; none where nothing is worth hiding.
    pub(crate) fn new(secrets: &[Vec<u8>]) -> Result<Option<Self>, aho_corasick::BuildError> {
        let forms = forms::all(secrets);
        let Some(longest) = forms.iter().map(Vec::len).max() else {
            return Ok(None);
        };
        Ok(Some(Self {
            forms: AhoCorasick::new(&forms)?,
            longest,
        }))
    }

    /// A whole line, or any text on its own.
    pub(crate) fn mask<'t>(&self, text: &'t [u8]) -> Cow<'t, [u8]> {
        if !self.forms.is_match(text) {
            return Cow::Borrowed(text);
        }
        let mut masked = Vec::with_capacity(text.len());
        replace(text, &self.covered(text, 0), false, &mut masked);
        Cow::Owned(masked)
    }

    /// A whole text of characters.
    pub(crate) fn mask_text(&self, text: &str) -> String {
        String::from_utf8_lossy(&self.mask(text.as_bytes())).into_owned()
    }

    /// The next piece of a line, masked as far as that can be told; the rest is held until the line's end.
    pub(crate) fn mask_piece(&self, held: &mut Held, piece: &[u8], ends: bool) -> Vec<u8> {
        held.bytes.extend_from_slice(piece);
        let ranges = self.covered(&held.bytes, held.covered);
        let length = held.bytes.len();
        // What begins before it has ended, if it is a secret.
        let cut = if ends {
            length
        } else {
            before_character(&held.bytes, (length + 1).saturating_sub(self.longest))
        };
        let before: Vec<Range<usize>> = ranges
            .iter()
            .filter(|range| range.start < cut)
            .map(|range| range.start..range.end.min(cut))
            .collect();
        let mut masked = Vec::with_capacity(cut);
        replace(&held.bytes[..cut], &before, held.covered > 0, &mut masked);
        let across = ranges.iter().find(|range| range.start < cut && range.end > cut);
        held.covered = match across {
            Some(range) => range.end - cut,
            // Nothing was told, so it is as before.
            None if cut == 0 => held.covered,
            None => 0,
        };
        held.bytes.drain(..cut);
        masked
    }

    /// The bytes of secrets, as ranges that neither overlap nor touch the next by overlapping forms.
    fn covered(&self, text: &[u8], known: usize) -> Vec<Range<usize>> {
        let mut found: Vec<Range<usize>> = self
            .forms
            .find_overlapping_iter(text)
            .map(|form| form.range())
            .collect();
        if known > 0 {
            found.push(0..known);
        }
        found.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<usize>> = Vec::with_capacity(found.len());
        for range in found {
            match merged.last_mut() {
                Some(last) if range.start < last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged
    }
}

/// The nearest place at or before `at` that isn't within a character, where the text is UTF-8.
fn before_character(text: &[u8], at: usize) -> usize {
    let is_within = |at: usize| text.get(at).is_some_and(|byte| byte & 0b1100_0000 == 0b1000_0000);
    (at.saturating_sub(3)..=at)
        .rev()
        .find(|&at| !is_within(at))
        .unwrap_or(at)
}

/// Appends `text` with the ranges replaced. `goes_on`: the range at the very front has its mask already.
fn replace(text: &[u8], ranges: &[Range<usize>], goes_on: bool, to: &mut Vec<u8>) {
    let mut at = 0;
    for range in ranges {
        to.extend_from_slice(&text[at..range.start]);
        if !(goes_on && range.start == 0) {
            to.extend_from_slice(MASK);
        }
        at = range.end;
    }
    to.extend_from_slice(&text[at..]);
}

#[cfg(test)]
mod tests;
