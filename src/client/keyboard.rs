//! The keyboard of the terminal while a build is followed: what is typed isn't shown among the lines that are redrawn, and
//! a single key answers a question.

use std::{
    fs::{File, OpenOptions},
    io::Read as _,
};

use nix::{
    sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr},
    unistd::{getpgrp, tcgetpgrp},
};
use tokio::sync::oneshot;

/// What is asked after Ctrl-C: the build isn't this machine's. It fits into 80 columns.
pub(super) const QUESTION: &str = "[c]ancel the build, [d]etach and let it go on, or [Enter] to keep following?";

/// What is to become of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Stop it.
    Cancel,
    /// Let it go on, unseen.
    Detach,
    /// It was no more than a slip.
    Follow,
}

impl Wish {
    /// What a key stands for.
    const fn of(key: u8) -> Option<Self> {
        match key {
            b'c' | b'C' => Some(Self::Cancel),
            // The end of the input is an answer, too.
            b'd' | b'D' | 4 => Some(Self::Detach),
            b'\r' | b'\n' => Some(Self::Follow),
            _ => None,
        }
    }
}

/// The terminal's keyboard, as it was before once this is dropped.
pub(super) struct Keyboard {
    terminal: File,
    before: Termios,
}

impl Keyboard {
    /// Shows nothing of what is typed from now on; it is kept for whoever reads it next. `None` without a terminal, and in
    /// the background, where it is another program's.
    pub(super) fn quiet() -> Option<Self> {
        let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").ok()?;
        if !is_ours(&terminal) {
            return None;
        }
        let before = tcgetattr(&terminal).ok()?;
        let keyboard = Self { terminal, before };
        keyboard.set(SetArg::TCSADRAIN, &keyboard.silent());
        Some(keyboard)
    }

    fn silent(&self) -> Termios {
        let mut silent = self.before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        silent
    }

    fn set(&self, when: SetArg, how: &Termios) {
        // A program in the background that changes the terminal is stopped by the kernel.
        if is_ours(&self.terminal) {
            // There is nothing to do about a terminal that is gone.
            let _ = tcsetattr(&self.terminal, when, how);
        }
    }

    /// Waits for a key that is an answer. What was typed before the question is none.
    pub(super) fn ask(&self) -> oneshot::Receiver<Wish> {
        let mut single = self.silent();
        single.local_flags.remove(LocalFlags::ICANON);
        single.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        single.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        self.set(SetArg::TCSAFLUSH, &single);
        let (sender, answer) = oneshot::channel();
        let Ok(mut terminal) = self.terminal.try_clone() else {
            return answer;
        };
        // Reading can't be called off, so the process must be able to end without this thread.
        std::thread::spawn(move || {
            let mut key = [0];
            let wish = loop {
                match terminal.read(&mut key) {
                    Ok(1..) => {
                        if let Some(wish) = Wish::of(key[0]) {
                            break wish;
                        }
                    }
                    // There is nobody.
                    _ => break Wish::Detach,
                }
            };
            // Nobody waits any more when the build ended meanwhile.
            let _ = sender.send(wish);
        });
        answer
    }

    /// The question was answered; what was typed behind the answer belongs to it.
    pub(super) fn answered(&self) {
        self.set(SetArg::TCSAFLUSH, &self.silent());
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        self.set(SetArg::TCSADRAIN, &self.before);
    }
}

/// Whether this process is the one that the terminal's keys go to.
fn is_ours(terminal: &File) -> bool {
    tcgetpgrp(terminal) == Ok(getpgrp())
}
