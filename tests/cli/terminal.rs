//! The client on a terminal of its own, which wraps lines anew when it is resized.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Instant,
};

use nix::pty::{OpenptyResult, Winsize, openpty};

use super::{
    service::{DEADLINE, soon},
    support::Shell,
};

pub(super) struct Terminal {
    child: Child,
    keyboard: File,
    /// The end that the client has.
    end: OwnedFd,
    output: Receiver<Vec<u8>>,
    /// What was written since the last thing that was waited for.
    seen: String,
    /// The beginning of a character whose end hasn't arrived.
    cut: Vec<u8>,
    screen: avt::Terminal,
}

impl Terminal {
    pub(super) fn start(shell: &Shell, arguments: &[&str]) -> Self {
        Self::of_kind(shell, arguments, Some("xterm-256color"))
    }

    /// A terminal that calls itself this.
    pub(super) fn of_kind(shell: &Shell, arguments: &[&str], term: Option<&str>) -> Self {
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let OpenptyResult { master, slave } = openpty(&size, None).expect("a terminal");
        let end = |slave: &OwnedFd| Stdio::from(slave.try_clone().expect("cloned"));
        let child = Command::new("setsid")
            .args(["--ctty", env!("CARGO_BIN_EXE_kiln")])
            .args(arguments)
            .env_clear()
            .envs(shell.variables())
            .env("PATH", std::env::var("PATH").expect("set"))
            .envs(term.map(|term| ("TERM", term)))
            .current_dir(shell.folder())
            .stdin(end(&slave))
            .stdout(end(&slave))
            .stderr(end(&slave))
            .spawn()
            .expect("starts");
        let mut reader = File::from(master.try_clone().expect("cloned"));
        let (sender, output) = channel();
        // Ends with the terminal.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..read].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            keyboard: File::from(master),
            end: slave,
            output,
            seen: String::new(),
            cut: Vec::new(),
            screen: avt::Terminal::with_scrollback(80, 24, None).expect("a size"),
        }
    }

    /// Takes what was written. Whether there was anything.
    fn take(&mut self) -> bool {
        let Ok(bytes) = self.output.try_recv() else {
            return false;
        };
        self.cut.extend(bytes);
        let whole = match std::str::from_utf8(&self.cut) {
            Ok(text) => text.len(),
            Err(error) => error.valid_up_to(),
        };
        let text: Vec<u8> = self.cut.drain(..whole).collect();
        let text = String::from_utf8(text).expect("checked");
        self.screen.feed(text.as_str());
        self.seen += &text;
        true
    }

    /// Waits until this is written, and forgets what was before it.
    pub(super) async fn until(&mut self, words: &str) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(at) = self.seen.find(words) {
                self.seen.drain(..at + words.len());
                return;
            }
            assert!(Instant::now() < deadline, "never saw {words:?}: {:?}", self.seen);
            if !self.take() {
                // The service runs on this thread, too.
                tokio::task::yield_now().await;
            }
        }
    }

    pub(super) fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("typed");
    }

    /// Gives it another size.
    pub(super) fn resize(&mut self, columns: u16, rows: u16) {
        while self.take() {}
        let mut stty = Command::new("stty");
        stty.args(["cols", &columns.to_string(), "rows", &rows.to_string()]);
        stty.stdin(Stdio::from(self.end.try_clone().expect("cloned")));
        assert!(stty.status().expect("runs").success());
        self.screen.resize(columns.into(), rows.into());
    }

    /// Whether what is typed is shown.
    pub(super) fn echoes(&self) -> bool {
        let how = nix::sys::termios::tcgetattr(&self.end).expect("a terminal");
        how.local_flags.contains(nix::sys::termios::LocalFlags::ECHO)
    }

    /// Waits until keys aren't taken one by one any more, so that no question stands, and forgets what was before it.
    pub(super) async fn until_unasked(&mut self) {
        use nix::sys::termios::{LocalFlags, tcgetattr};
        let asked = || {
            !tcgetattr(&self.end)
                .expect("a terminal")
                .local_flags
                .contains(LocalFlags::ICANON)
        };
        let unasked = async {
            while asked() {
                tokio::task::yield_now().await;
            }
        };
        soon("the end of the question", unasked).await;
        while self.take() {}
        self.seen.clear();
    }

    /// Waits until what is typed isn't shown any more.
    pub(super) async fn until_silent(&self) {
        let silent = async {
            while self.echoes() {
                tokio::task::yield_now().await;
            }
        };
        soon("a terminal without echo", silent).await;
    }

    /// All that is on the screen and was scrolled off it, line by line.
    pub(super) fn text(&mut self) -> Vec<String> {
        while self.take() {}
        self.screen.primary_screen().text()
    }

    /// Waits for the end, and gives the exit code and what was written since.
    pub(super) async fn ends(&mut self) -> (i32, String) {
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("waited for") {
                break status;
            }
            assert!(Instant::now() < deadline, "never ended: {:?}", self.seen);
            tokio::task::yield_now().await;
        };
        // What the client wrote before it ended is there, but perhaps not read yet.
        let mark = "\u{1b}[?2026l";
        let mut end = File::from(self.end.try_clone().expect("cloned"));
        end.write_all(mark.as_bytes()).expect("written");
        while !self.seen.contains(mark) {
            assert!(Instant::now() < deadline, "the rest never came: {:?}", self.seen);
            self.take();
        }
        (status.code().unwrap_or(-1), std::mem::take(&mut self.seen))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
