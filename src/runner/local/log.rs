//! Reads a step's log file while the agent writes it.

use std::{io, path::Path, time::Duration};

use bytes::{Bytes, BytesMut};
use kiln_agent::wire::frame::Frame;
use tokio::{
    fs::File,
    io::AsyncReadExt,
    sync::{mpsc, watch},
    time::sleep,
};

use crate::{
    domain::event::StepName,
    runner::{LogEnd, LogPosition, Observation},
};

const CHUNK: usize = 128 * 1024;
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Sends the lines after `after` until the step has ended and its log is read to the end.
pub(super) async fn read(
    path: &Path,
    step: StepName,
    after: LogPosition,
    mut observed: watch::Receiver<Observation>,
    chunks: mpsc::Sender<Bytes>,
) -> LogEnd {
    let mut tail = Tail {
        file: None,
        rest: BytesMut::new(),
        held: after.line,
    };
    let mut pause = SHORTEST_PAUSE;
    loop {
        // Asked before reading: what was written before the step ended is then certain to be read.
        let ended = ended(&observed.borrow_and_update(), step);
        let lines = match tail.next(path).await {
            Ok(lines) => lines,
            Err(error) => {
                tracing::warn!(log.path = %path.display(), error = %error, "a log file can't be read");
                return LogEnd::Lost("the log file can't be read".to_owned());
            }
        };
        match lines {
            Some(lines) => {
                pause = SHORTEST_PAUSE;
                if !lines.is_empty() && chunks.send(lines).await.is_err() {
                    return LogEnd::Lost("nobody reads any more".to_owned());
                }
                continue;
            }
            None => match ended {
                Ended::No => {}
                Ended::Yes if tail.rest.is_empty() => return LogEnd::Complete,
                Ended::Yes => return LogEnd::Lost("the agent was killed while it wrote a line".to_owned()),
                Ended::Gone => return LogEnd::Lost("the attempt's folder was removed".to_owned()),
            },
        }
        tokio::select! {
            () = sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            // Its closing means that the runner shuts down.
            changed = observed.changed() => if changed.is_err() {
                return LogEnd::Lost("the service shuts down".to_owned());
            },
            () = chunks.closed() => return LogEnd::Lost("nobody reads any more".to_owned()),
        }
    }
}

enum Ended {
    No,
    Yes,
    Gone,
}

fn ended(observation: &Observation, step: StepName) -> Ended {
    let begun = observation.steps().iter().find(|begun| begun.step == step);
    match (observation, begun) {
        (_, Some(step)) if step.end.is_some() => Ended::Yes,
        (Observation::Gone { .. }, _) => Ended::Gone,
        (Observation::Finished { .. }, _) => Ended::Yes,
        _ => Ended::No,
    }
}

/// A file that grows, and how far it was read.
struct Tail {
    file: Option<File>,
    /// The beginning of a line whose end wasn't there yet.
    rest: BytesMut,
    /// Lines up to this number are of no interest.
    held: u64,
}

impl Tail {
    /// The next whole lines; `None` when there is nothing more to read.
    async fn next(&mut self, path: &Path) -> io::Result<Option<Bytes>> {
        let file = match &mut self.file {
            Some(file) => file,
            None => match File::open(path).await {
                Ok(file) => self.file.insert(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        self.rest.reserve(CHUNK);
        if file.read_buf(&mut self.rest).await? == 0 {
            return Ok(None);
        }
        let whole = self
            .rest
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |last| last + 1);
        let mut lines = self.rest.split_to(whole).freeze();
        while self.held > 0
            && let Some(end) = lines.iter().position(|&byte| byte == b'\n')
        {
            match Frame::parse(&lines[..end]) {
                Some(frame) if frame.number <= self.held => drop(lines.split_to(end + 1)),
                _ => self.held = 0,
            }
        }
        Ok(Some(lines))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use kiln_agent::wire::frame::Stream;

    use super::*;
    use crate::runner::{Outcome, StepEnd, StepObservation};

    fn frames(numbers: std::ops::RangeInclusive<u64>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in numbers {
            let text = format!("line {number}");
            Frame {
                number,
                at_ms: number,
                stream: Stream::Stdout,
                partial: false,
                text: text.as_bytes(),
            }
            .encode(&mut bytes);
        }
        bytes
    }

    fn running(ended: bool) -> Observation {
        let end = ended.then_some(StepEnd {
            succeeded: true,
            at: chrono::DateTime::UNIX_EPOCH,
            report: None,
        });
        let step = StepObservation {
            step: StepName::Build,
            started_at: chrono::DateTime::UNIX_EPOCH,
            end,
        };
        Observation::Running {
            node: None,
            steps: vec![step],
            waiting: None,
        }
    }

    /// Everything that is read, and how it ended.
    async fn collect(path: &Path, after: u64, observed: watch::Receiver<Observation>) -> (Vec<u8>, LogEnd) {
        let (sender, mut chunks) = mpsc::channel(1);
        let after = LogPosition { line: after, at_ms: 0 };
        let reading = read(path, StepName::Build, after, observed, sender);
        let collecting = async {
            let mut all = Vec::new();
            while let Some(chunk) = chunks.recv().await {
                assert!(chunk.ends_with(b"\n"), "whole lines only");
                all.extend_from_slice(&chunk);
            }
            all
        };
        let (end, all) = tokio::join!(reading, collecting);
        (all, end)
    }

    #[tokio::test]
    async fn what_is_written_in_pieces_arrives_whole() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("build.log");
        let (observed, receiver) = watch::channel(running(false));
        let bytes = frames(1..=20_000);
        let writer = {
            let (path, bytes) = (path.clone(), bytes.clone());
            std::thread::spawn(move || {
                let mut file = fs::File::create(path).expect("created");
                for piece in bytes.chunks(777) {
                    file.write_all(piece).expect("written");
                }
                observed.send_replace(running(true));
                observed
            })
        };
        let (all, end) = collect(&path, 0, receiver).await;
        assert_eq!(end, LogEnd::Complete);
        assert!(all == bytes, "{} of {} bytes", all.len(), bytes.len());
        drop(writer.join());
    }

    #[tokio::test]
    async fn lines_that_are_held_are_skipped() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("build.log");
        fs::write(&path, frames(1..=10)).expect("written");
        let (_observed, receiver) = watch::channel(running(true));
        assert_eq!(
            collect(&path, 7, receiver.clone()).await,
            (frames(8..=10), LogEnd::Complete)
        );
        assert_eq!(collect(&path, 10, receiver).await, (Vec::new(), LogEnd::Complete));
    }

    #[tokio::test]
    async fn half_a_line_at_the_end_is_a_loss() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("build.log");
        let bytes = frames(1..=2);
        fs::write(&path, &bytes[..bytes.len() - 3]).expect("written");
        let (_observed, receiver) = watch::channel(running(true));
        let (all, end) = collect(&path, 0, receiver).await;
        assert_eq!(all, frames(1..=1));
        assert!(matches!(end, LogEnd::Lost(_)), "{end:?}");
    }

    #[tokio::test]
    async fn a_step_that_never_began_has_an_empty_log() {
        let finished = Observation::Finished {
            node: None,
            steps: Vec::new(),
            outcome: Outcome::Succeeded,
        };
        let (_observed, receiver) = watch::channel(finished);
        let (all, end) = collect(Path::new("/nowhere/build.log"), 0, receiver).await;
        assert_eq!((all, end), (Vec::new(), LogEnd::Complete));
    }

    #[tokio::test]
    async fn a_removed_attempt_ends_the_reading() {
        let (observed, receiver) = watch::channel(running(false));
        observed.send_replace(Observation::Gone { steps: Vec::new() });
        let (all, end) = collect(Path::new("/nowhere/build.log"), 0, receiver).await;
        assert!(all.is_empty() && matches!(end, LogEnd::Lost(_)), "{end:?}");
    }
}
