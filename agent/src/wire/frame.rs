//! One line of a step's output on its way out of the pod: `<number> <unix-milliseconds> <stream><end> <text>\n`.
//!
//! The number counts from 1 within a step. It makes loss and repetition visible whatever carried the bytes: a reader
//! that holds line `n` skips everything up to `n` and reports a jump beyond `n + 1` as a gap of exactly that many
//! lines. The form stays readable in `kubectl logs`.

/// A longer line is cut into pieces of at most this many bytes, each but the last marked as partial.
pub const MAX_TEXT: usize = 64 * 1024;

/// Which of the two output streams a line was written to, or what else a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// No output: the text is a [`super::step::StepRecord`] as JSON.
    Step,
    /// No output: the lines up to this number, as many as are missing before it and this one, were dropped because
    /// there was no room for them. The text says why, for people.
    Truncated,
}

/// One framed line, borrowed from the buffer that it was read into. The text is bytes: builds print what they like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Position in the step's output, from 1.
    pub number: u64,
    /// When the agent read the line, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Where the line was written.
    pub stream: Stream,
    /// Whether the line goes on in the next frame of the same stream.
    pub partial: bool,
    /// The line without its newline.
    pub text: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Appends the encoded frame, newline included.
    pub fn encode(&self, out: &mut Vec<u8>) {
        push_number(out, self.number);
        out.push(b' ');
        push_number(out, self.at_ms);
        out.push(b' ');
        out.push(match self.stream {
            Stream::Stdout => b'o',
            Stream::Stderr => b'e',
            Stream::Step => b's',
            Stream::Truncated => b't',
        });
        out.push(if self.partial { b'+' } else { b'.' });
        out.push(b' ');
        out.extend_from_slice(self.text);
        out.push(b'\n');
    }

    /// Reads a frame from one line (without its newline). `None` means that the line isn't a frame: the kubelet
    /// reports its own errors in band, as log text.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let (number, rest) = split_number(line)?;
        let (at_ms, rest) = split_number(rest)?;
        let [stream, end, b' ', text @ ..] = rest else {
            return None;
        };
        let stream = match stream {
            b'o' => Stream::Stdout,
            b'e' => Stream::Stderr,
            b's' => Stream::Step,
            b't' => Stream::Truncated,
            _ => return None,
        };
        let partial = match end {
            b'+' => true,
            b'.' => false,
            _ => return None,
        };
        (number > 0).then_some(Self {
            number,
            at_ms,
            stream,
            partial,
            text,
        })
    }
}

/// Appends a number in decimal. Frames are made by the hundred thousand a second, so without a `String` each.
fn push_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// Splits a decimal number and the space after it off the front. Leading zeros and signs are refused, so that every
/// frame has exactly one encoding.
fn split_number(line: &[u8]) -> Option<(u64, &[u8])> {
    let end = line.iter().take(21).position(|&byte| byte == b' ')?;
    let (digits, rest) = (&line[..end], &line[end + 1..]);
    let canonical = digits == b"0" || digits.first().is_some_and(|first| (b'1'..=b'9').contains(first));
    if !canonical || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some((number, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_survives_the_trip() {
        for text in [
            &b"plain"[..],
            b"",
            b" leading",
            b"\r50%\r100%",
            b"\xff\xfe",
            "\u{1f9f1}".as_bytes(),
        ] {
            let frame = Frame {
                number: 7,
                at_ms: 1_763_900_000_123,
                stream: Stream::Stderr,
                partial: true,
                text,
            };
            let mut line = Vec::new();
            frame.encode(&mut line);
            assert_eq!(line.pop(), Some(b'\n'));
            assert_eq!(Frame::parse(&line), Some(frame));
        }
    }

    #[test]
    fn what_is_not_a_frame_is_refused() {
        for line in [
            &b""[..],
            b"unable to retrieve container logs for containerd://abc",
            b"0 1 o. zero is no line number",
            b"01 1 o. leading zero",
            b"+1 1 o. sign",
            b"1 1 x. stream",
            b"1 1 o? end",
            b"1 1 o.",
            b"99999999999999999999999 1 o. overflow",
        ] {
            assert_eq!(Frame::parse(line), None, "{:?}", String::from_utf8_lossy(line));
        }
    }
}
