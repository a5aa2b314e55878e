//! Reads one pipe to its end, on a thread of its own.

use std::{
    io::{self, PipeReader, Read},
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use kiln_agent::wire::{frame::Stream, plan::Progress};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::progress::Translator;

use super::{
    kept::SharedKept,
    lines::Lines,
    sink::{Batch, OutputLost, Sink, Writer},
};

/// Bytes to ask for at once: the usual capacity of a pipe.
const READ_SIZE: usize = 64 * 1024;

/// The most that a pipe can hold (`/proc/sys/fs/pipe-max-size` for who isn't root).
const MAX_PIPE: usize = 1024 * 1024;
const PIPE_SIZE: i32 = 1024 * 1024;

/// Where the bytes of a pipe go.
#[derive(Clone)]
pub(crate) enum Target {
    /// Into the step's log.
    Log(Arc<Sink>),
    /// Into the step's log, and the end of it also into memory.
    LogAndMemory(Arc<Sink>, Arc<SharedKept>),
    /// Only the end of it, into memory.
    Memory(Arc<SharedKept>),
    /// Into the step's log, after it was read for what a builder says about its steps.
    Progress(Arc<Sink>, Progress),
}

/// Reads `pipe` until its end. Once the other end of `finish` is closed, reads only what the pipe holds at that
/// moment: processes that outlive the one whose output this is may keep the pipe open, but all that the latter wrote
/// is in it. After [`OutputLost`] the rest is read and dropped, so that nothing blocks.
pub(crate) fn read_to_end(
    mut pipe: impl Read + AsFd,
    finish: &PipeReader,
    writer: Writer,
    stream: Stream,
    target: &Target,
    mut lost: impl FnMut(OutputLost),
) {
    // Buildah's chroot isolation drops what it couldn't pass on by the time a command ends, so there is to be room.
    // Where the pipe can't be made longer the usual length has to do.
    let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    let mut lines = Lines::default();
    let mut buffer = vec![0; READ_SIZE];
    let mut left: Option<usize> = None;
    let mut translator = match target {
        Target::Progress(_, progress) => Some(Translator::new(*progress, writer)),
        Target::Log(_) | Target::LogAndMemory(..) | Target::Memory(_) => None,
    };
    loop {
        let patience = translator
            .as_ref()
            .and_then(|translator| translator.due(Instant::now()));
        let Some(readable) = next(&pipe, finish, &mut left, patience) else {
            break;
        };
        if !readable {
            if let (Target::Progress(sink, _), Some(translator)) = (target, &mut translator) {
                let mut batch = sink.batch(writer, stream);
                translator.tick(Instant::now(), &mut batch);
                send(batch, &mut lost);
            }
            continue;
        }
        let want = left.unwrap_or(READ_SIZE).min(READ_SIZE);
        let bytes = match pipe.read(&mut buffer[..want]) {
            Ok(0) => break,
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        left = left.map(|left| left - bytes.len());
        match target {
            Target::Memory(kept) => kept.push(bytes),
            Target::Log(sink) => emit(sink, writer, stream, &mut lost, |emit| lines.push(bytes, emit)),
            Target::LogAndMemory(sink, kept) => {
                kept.push(bytes);
                emit(sink, writer, stream, &mut lost, |emit| lines.push(bytes, emit));
            }
            Target::Progress(sink, _) => {
                let mut batch = sink.batch(writer, stream);
                if let Some(translator) = &mut translator {
                    translator.take(bytes, Instant::now(), &mut batch);
                }
                send(batch, &mut lost);
            }
        }
    }
    if let (Target::Progress(sink, _), Some(translator)) = (target, translator) {
        let mut batch = sink.batch(writer, stream);
        translator.finish(&mut batch);
        send(batch, &mut lost);
    }
    if let Target::Log(sink) | Target::LogAndMemory(sink, _) = target {
        emit(sink, writer, stream, &mut lost, |emit| lines.finish(emit));
    }
}

/// Waits until there is something to do, or for as long as `patience` says. Says whether the pipe can be read; nothing when reading is over.
fn next(pipe: &impl AsFd, finish: &PipeReader, left: &mut Option<usize>, patience: Option<Duration>) -> Option<bool> {
    if *left == Some(0) {
        return None;
    }
    let mut fds = [
        PollFd::new(pipe.as_fd(), PollFlags::POLLIN),
        PollFd::new(finish.as_fd(), PollFlags::POLLIN),
    ];
    let timeout = if left.is_some() {
        PollTimeout::ZERO
    } else {
        let rounded_up = patience.map(|patience| u16::try_from(patience.as_millis() + 1).unwrap_or(u16::MAX));
        rounded_up.map_or(PollTimeout::NONE, PollTimeout::from)
    };
    match poll(if left.is_some() { &mut fds[..1] } else { &mut fds }, timeout) {
        Err(Errno::EINTR) => return Some(false),
        Err(_) => return None,
        Ok(_) => {}
    }
    let [readable, finishing] = fds.map(|fd| fd.any().unwrap_or(true));
    if left.is_some() {
        return readable.then_some(true);
    }
    if finishing {
        *left = Some(MAX_PIPE);
    }
    Some(readable)
}

fn emit(
    sink: &Sink,
    writer: Writer,
    stream: Stream,
    lost: &mut impl FnMut(OutputLost),
    lines: impl FnOnce(&mut dyn FnMut(&[u8], bool)),
) {
    let mut batch = sink.batch(writer, stream);
    lines(&mut |text, partial| batch.line(text, partial));
    send(batch, lost);
}

fn send(batch: Batch<'_>, lost: &mut impl FnMut(OutputLost)) {
    if let Err(error) = batch.send() {
        lost(error);
    }
}
