//! Ctrl-C, at a terminal and in a pipe.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Instant,
};

use kiln::domain::{event::StepName, project::Scope};
use nix::{
    pty::{OpenptyResult, Winsize, openpty},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sqlx::PgPool;

use super::{
    service::{DEADLINE, TestApp},
    support::Shell,
    worker::Hand,
};

/// The client on a terminal of its own.
struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    fn start(shell: &Shell, arguments: &[&str]) -> Self {
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
            .env("TERM", "xterm-256color")
            .current_dir(shell.folder())
            .stdin(end(&slave))
            .stdout(end(&slave))
            .stderr(end(&slave))
            .spawn()
            .expect("starts");
        let mut reader = File::from(master.try_clone().expect("cloned"));
        let (sender, screen) = channel();
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
            screen,
            seen: String::new(),
        }
    }

    /// Waits until this is on the screen, and forgets what stood before it.
    async fn until(&mut self, words: &str) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(at) = self.seen.find(words) {
                self.seen.drain(..at + words.len());
                return;
            }
            assert!(Instant::now() < deadline, "never saw {words:?}: {:?}", self.seen);
            match self.screen.try_recv() {
                Ok(bytes) => self.seen += &String::from_utf8_lossy(&bytes),
                // The service runs on this thread, too.
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("typed");
    }

    /// Waits for the end, and gives the exit code and what was on the screen since.
    async fn ends(mut self) -> (i32, String) {
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("waited for") {
                break status;
            }
            assert!(Instant::now() < deadline, "never ended: {:?}", self.seen);
            tokio::task::yield_now().await;
        };
        while let Ok(bytes) = self.screen.try_recv() {
            self.seen += &String::from_utf8_lossy(&bytes);
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

const BUILD: [&str; 3] = ["build", "https://git.example/app.git", "--no-push"];
const QUESTION: &str = "[c]ancel the build, [d]etach and let it go on, or Enter to keep following?";

async fn state(pool: &PgPool) -> String {
    let query = "SELECT state::text FROM builds ORDER BY id DESC LIMIT 1";
    sqlx::query_scalar(query).fetch_one(pool).await.expect("a build")
}

#[sqlx::test]
async fn at_a_terminal_one_is_asked_and_can_cancel(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let mut terminal = Terminal::start(&shell, &BUILD);
    terminal.until("queued").await;
    terminal.types("\u{3}");
    terminal.until(QUESTION).await;
    // A slip: it goes on.
    terminal.types("\n");
    terminal.until("queued").await;
    terminal.types("\u{3}");
    terminal.until(QUESTION).await;
    terminal.types("c\n");
    terminal.until("kiln: cancelled").await;
    assert_eq!(terminal.ends().await.0, 3);
    assert_eq!(state(&pool).await, "cancelled");
    app.stop().await;
}

#[sqlx::test]
async fn at_a_terminal_a_build_can_be_left_to_itself(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    // By the answer, and by another Ctrl-C.
    for answer in ["d\n", "\u{3}"] {
        let mut terminal = Terminal::start(&shell, &BUILD);
        terminal.until("queued").await;
        terminal.types("\u{3}");
        terminal.until(QUESTION).await;
        terminal.types(answer);
        terminal.until("detached; the build goes on").await;
        let (code, rest) = terminal.ends().await;
        assert_eq!(code, 130);
        assert!(
            rest.contains("kiln logs -f ") && rest.contains("kiln cancel "),
            "{rest}"
        );
        assert_eq!(state(&pool).await, "queued");
    }
    app.stop().await;
}

#[sqlx::test]
async fn output_on_a_terminal_is_harmless_and_the_cursor_stays_visible(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let mut terminal = Terminal::start(&shell, &BUILD);
    terminal.until("queued").await;
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    terminal.until("running").await;
    hand.print(StepName::Build, "before\n\u{1b}]0;owned\u{7}10%\r\u{1b}[2Jafter\n")
        .await;
    terminal.until("before").await;
    hand.succeed().await;
    let (code, rest) = terminal.ends().await;
    assert_eq!(code, 0);
    assert!(rest.contains("after") && rest.contains("kiln: succeeded"), "{rest:?}");
    assert!(!rest.contains("owned\u{7}") && !rest.contains("\u{1b}[2J"), "{rest:?}");
    let last = |mode: &str| rest.rfind(mode);
    assert!(
        last("\u{1b}[?25l") <= last("\u{1b}[?25h"),
        "the cursor is hidden: {rest:?}"
    );
    app.stop().await;
}

#[sqlx::test]
async fn in_a_pipe_it_detaches_and_says_how_to_go_on(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut child = shell.command(&BUILD).spawn().expect("starts");
        let mut errors = tokio::io::BufReader::new(child.stderr.take().expect("piped"));
        let mut said = String::new();
        let pid = Pid::from_raw(child.id().expect("runs").try_into().expect("fits"));
        super::service::soon("the first state", async {
            while !said.contains("kiln: queued\n") {
                let read = tokio::io::AsyncBufReadExt::read_line(&mut errors, &mut said)
                    .await
                    .expect("reads");
                assert!(read > 0, "{said}");
            }
        })
        .await;
        kill(pid, signal).expect("signalled");
        let status = super::service::soon("the end of the client", child.wait())
            .await
            .expect("waited for");
        assert_eq!(status.code(), Some(130));
        tokio::io::AsyncReadExt::read_to_string(&mut errors, &mut said)
            .await
            .expect("reads");
        assert!(
            said.contains("kiln: detached; the build goes on. Follow it again with `kiln logs -f "),
            "{said}"
        );
        assert_eq!(state(&pool).await, "queued");
    }
    app.stop().await;
}
