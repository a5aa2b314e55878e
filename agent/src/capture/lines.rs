//! Cuts a stream of bytes into lines, whatever portions it arrives in.

use kiln_agent::wire::frame::MAX_TEXT;
use memchr::memchr;

/// The line that one stream is in the middle of.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// What came after the last newline and was not emitted yet: at most [`MAX_TEXT`] bytes between calls.
    pending: Vec<u8>,
}

impl Lines {
    /// Takes the next bytes and emits the lines that they complete, each as its text and whether the line goes on.
    /// A piece that goes on is always followed by another one that is not empty.
    pub(crate) fn push(&mut self, mut bytes: &[u8], mut emit: impl FnMut(&[u8], bool)) {
        while let Some(end) = memchr(b'\n', bytes) {
            let line = &bytes[..end];
            bytes = &bytes[end + 1..];
            if self.pending.is_empty() {
                let rest = split_long(line, &mut emit);
                emit(rest, false);
            } else {
                self.append(line, &mut emit);
                emit(&self.pending, false);
                self.pending.clear();
            }
        }
        self.append(bytes, &mut emit);
    }

    /// Emits a last line that has no newline.
    pub(crate) fn finish(&mut self, mut emit: impl FnMut(&[u8], bool)) {
        if !self.pending.is_empty() {
            emit(&self.pending, false);
            self.pending.clear();
        }
    }

    fn append(&mut self, bytes: &[u8], emit: &mut impl FnMut(&[u8], bool)) {
        self.pending.extend_from_slice(bytes);
        let left = split_long(&self.pending, emit).len();
        self.pending.drain(..self.pending.len() - left);
    }
}

/// Emits full pieces off the front of a line that is too long and returns what is left, at most [`MAX_TEXT`] bytes.
pub(super) fn split_long<'a>(mut line: &'a [u8], emit: &mut impl FnMut(&[u8], bool)) -> &'a [u8] {
    while line.len() > MAX_TEXT {
        let (piece, rest) = line.split_at(boundary(line));
        emit(piece, true);
        line = rest;
    }
    line
}

/// Where to cut a line longer than [`MAX_TEXT`]: before the character that would go past it, where the text is UTF-8.
fn boundary(line: &[u8]) -> usize {
    let is_continuation = |byte: u8| byte & 0b1100_0000 == 0b1000_0000;
    (MAX_TEXT - 3..=MAX_TEXT)
        .rev()
        .find(|&at| !is_continuation(line[at]))
        .unwrap_or(MAX_TEXT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pushes `text` in portions of the given sizes, taken in turn, and returns what is emitted.
    fn cut(text: &[u8], portions: &[usize]) -> Vec<(Vec<u8>, bool)> {
        let mut emitted = Vec::new();
        let mut lines = Lines::default();
        let mut rest = text;
        for &size in portions.iter().cycle() {
            let (portion, after) = rest.split_at(size.min(rest.len()));
            lines.push(portion, |text, partial| emitted.push((text.to_vec(), partial)));
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        lines.finish(|text, partial| emitted.push((text.to_vec(), partial)));
        emitted
    }

    fn joined(pieces: &[(Vec<u8>, bool)]) -> Vec<u8> {
        let mut text = Vec::new();
        for (piece, partial) in pieces {
            text.extend_from_slice(piece);
            if !partial {
                text.push(b'\n');
            }
        }
        text
    }

    #[test]
    fn a_line_of_the_limit_is_one_piece() {
        let line = vec![b'x'; MAX_TEXT];
        assert_eq!(cut(&[&line[..], b"\n"].concat(), &[1000]), [(line.clone(), false)]);
        assert_eq!(cut(&line, &[MAX_TEXT]), [(line, false)]);
    }

    #[test]
    fn a_longer_line_is_cut_between_characters() {
        let text = "€".repeat(MAX_TEXT);
        let pieces = cut(text.as_bytes(), &[4096]);
        assert!(pieces.len() > 3);
        for (piece, _) in &pieces {
            assert!(piece.len() <= MAX_TEXT && std::str::from_utf8(piece).is_ok());
        }
        assert!(!pieces.last().unwrap().1);
        assert_eq!(joined(&pieces), [text.as_bytes(), b"\n"].concat());
    }

    #[test]
    fn carriage_returns_stay_inside_their_line() {
        let pieces = cut(b"10%\r20%\rdone\r\n\n", &[2]);
        assert_eq!(pieces, [(b"10%\r20%\rdone\r".to_vec(), false), (Vec::new(), false)]);
    }

    proptest! {
        #[test]
        fn however_it_arrives_the_same_text_comes_out(
            runs in prop::collection::vec((any::<u8>(), 1_usize..100_000), 0..6),
            portions in prop::collection::vec(1_usize..70_000, 1..8),
        ) {
            let text: Vec<u8> = runs.iter().flat_map(|&(byte, length)| {
                // A newline now and then, else a run of the same byte.
                std::iter::repeat_n(byte, length).chain(byte.is_multiple_of(2).then_some(b'\n'))
            }).collect();
            let pieces = cut(&text, &portions);
            let mut expected = text.clone();
            if expected.last().is_some_and(|&last| last != b'\n') {
                expected.push(b'\n');
            }
            prop_assert!(joined(&pieces) == expected);
            prop_assert!(pieces.iter().all(|(piece, _)| piece.len() <= MAX_TEXT && !piece.contains(&b'\n')));
            prop_assert!(pieces.windows(2).all(|pair| !pair[0].1 || !pair[1].0.is_empty()));
            prop_assert_eq!(&pieces, &cut(&text, &[usize::MAX]));
        }

        #[test]
        fn short_arbitrary_bytes_too(text: Vec<u8>, portions in prop::collection::vec(1_usize..9, 1..4)) {
            let pieces = cut(&text, &portions);
            let mut expected = text.clone();
            if expected.last().is_some_and(|&last| last != b'\n') {
                expected.push(b'\n');
            }
            prop_assert_eq!(joined(&pieces), expected);
        }
    }
}
