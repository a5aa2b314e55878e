//! What a person sees while a build goes on: lines that stay, and on a terminal below them what is being done now.
//!
//! In a pipe or a CI log there are only lines: the build's output as it was printed on standard output, everything else on
//! standard error. On a terminal the output scrolls above a few lines that are redrawn.

use std::{
    io::{self, IsTerminal as _, Write},
    time::Instant,
};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use console::Term;

use super::{
    args::Color,
    live::{Live, Sending, Size, Work, frame},
    text::harmless,
    wire::{Entry, Event, Gap, Queue, Status},
};

/// Standard output and error, with colours where they are wanted.
pub(super) struct Screen {
    out: AutoStream<io::Stdout>,
    error: AutoStream<io::Stderr>,
    /// Whether there is somebody who can be asked.
    pub(super) interactive: bool,
    /// What is redrawn below the lines that stay.
    live: Option<Live>,
    /// Whether the output ended within a line.
    within_line: bool,
    /// Whether the connection is known to be gone.
    away: bool,
    /// Where the build stands, as far as that was shown.
    state: String,
    /// What was last said to keep it from going on.
    blocked: Option<String>,
    /// Where the build's output goes.
    output: Output,
}

/// Where a build's output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// To standard output.
    Out,
    /// To standard error, because something else is standard output's.
    Error,
}

/// Green, red, yellow: how something went.
pub(super) const GOOD: Style = AnsiColor::Green.on_default().bold();
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();
pub(super) const UNSURE: Style = AnsiColor::Yellow.on_default();
pub(super) const FAINT: Style = Style::new().dimmed();
const PLAIN: Style = Style::new();

/// The style for a state.
pub(super) fn style_of(state: &str) -> Style {
    match state {
        "succeeded" => GOOD,
        "failed" => BAD,
        "cancelled" | "cancelling" => UNSURE,
        _ => PLAIN,
    }
}

/// A text in a style.
pub(super) fn styled(style: Style, text: &str) -> String {
    if style == PLAIN {
        text.to_owned()
    } else {
        format!("{style}{text}{style:#}")
    }
}

/// Whether the terminal knows how to move its cursor: `dumb` ones, and those that don't say what they are, get plain
/// lines as a pipe does.
fn can_redraw() -> bool {
    std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb")
}

impl Screen {
    pub(super) fn new(color: Color) -> Self {
        let choice = match color {
            Color::Auto => ColorChoice::Auto,
            Color::Always => ColorChoice::Always,
            Color::Never => ColorChoice::Never,
        };
        Self {
            out: AutoStream::new(io::stdout(), choice),
            error: AutoStream::new(io::stderr(), choice),
            interactive: io::stdout().is_terminal() && io::stderr().is_terminal() && can_redraw(),
            live: None,
            within_line: false,
            away: false,
            state: String::new(),
            blocked: None,
            output: Output::Out,
        }
    }

    /// Writes to standard output: what the command is for.
    pub(super) fn print(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Says something about what goes on: a line that stays.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        self.end_line()?;
        if self.live.is_some() {
            let text = match self.error.current_choice() {
                ColorChoice::Never => anstream::adapter::strip_str(text).to_string(),
                _ => text.to_owned(),
            };
            return self.draw(&(text + "\n"));
        }
        writeln!(self.error, "{text}")
    }

    /// Lets these lines scroll by, and draws what stands below them.
    fn draw(&self, above: &str) -> io::Result<()> {
        let lines = self.live.as_ref().map(|live| live.lines(Instant::now()));
        let (rows, columns) = Term::stderr().size();
        let size = Size {
            columns: columns.into(),
            rows: rows.into(),
        };
        // In one piece, so that nothing is seen half drawn.
        io::stderr()
            .lock()
            .write_all(frame(above, &lines.unwrap_or_default(), size).as_bytes())
    }

    /// Draws what is redrawn as it is now, for the terminal as it is now.
    pub(super) fn tick(&self) -> io::Result<()> {
        match self.live {
            Some(_) => self.draw(""),
            None => Ok(()),
        }
    }

    fn end_line(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.within_line) {
            match self.output {
                Output::Out => self.print("\n")?,
                Output::Error => self.error.write_all(b"\n")?,
            }
        }
        Ok(())
    }

    /// Begins to show what a build is doing now, where that can be redrawn.
    pub(super) fn begin(&mut self, output: Output) -> io::Result<()> {
        self.output = output;
        if self.interactive {
            self.live = Some(Live::Build(Work::new(Instant::now())));
        }
        self.tick()
    }

    /// Shows how much of a folder has been sent, where that can be redrawn.
    pub(super) fn sending(&mut self, what: &str, bytes: u64, sent: u64) -> io::Result<()> {
        if self.interactive {
            self.live = Some(Live::Sending(Sending {
                what: what.to_owned(),
                bytes,
                sent,
            }));
        }
        self.tick()
    }

    /// Takes what is redrawn away; the cursor stands at the beginning of a line.
    pub(super) fn end(&mut self) -> io::Result<()> {
        if self.live.take().is_some() {
            self.draw("")?;
        }
        self.end_line()
    }

    /// Asks the person at the terminal something, or withdraws what was asked.
    pub(super) fn ask(&mut self, question: Option<&str>) -> io::Result<()> {
        if let Some(Live::Build(work)) = &mut self.live {
            work.ask(question.map(ToOwned::to_owned));
        }
        self.tick()
    }

    /// The connection is gone.
    pub(super) fn lost(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.away, true) {
            return Ok(());
        }
        self.say(&styled(UNSURE, "kiln: the connection is gone; trying to get it back"))
    }

    /// The connection is there again.
    pub(super) fn back(&mut self) -> io::Result<()> {
        self.away = false;
        self.say(&styled(FAINT, "kiln: connected again; nothing was missed"))
    }

    /// Tells why nothing is heard of the build: below the lines that stay, or in a line when that is something new.
    pub(super) fn waits(&mut self, queue: &Queue) -> io::Result<()> {
        // It has gone on since it was asked.
        if !self.state.is_empty() && self.state != queue.state {
            return Ok(());
        }
        if let Some(Live::Build(work)) = &mut self.live {
            work.wait_for(queue.reason());
            return self.tick();
        }
        let block = queue.block();
        if block == self.blocked {
            return Ok(());
        }
        self.blocked.clone_from(&block);
        match block {
            Some(block) => self.say(&styled(FAINT, &format!("kiln: {}: {block}", queue.state))),
            None => Ok(()),
        }
    }

    /// Shows something that happened to the build.
    pub(super) fn show(&mut self, entry: &Entry) -> io::Result<()> {
        if let Some(Live::Build(work)) = &mut self.live {
            work.wait_for(None);
        }
        match &entry.event {
            Event::Log(log) => self.output(&log.text),
            Event::Gap(gap) => {
                self.end_line()?;
                self.output(&notice(gap))
            }
            Event::Status(status) => self.status(status),
            Event::Step(step) => {
                if let Some(Live::Build(work)) = &mut self.live {
                    let name = harmless(step.name.as_deref().unwrap_or("a step"));
                    work.on_step(step, name, Instant::now());
                }
                self.tick()
            }
            Event::End(_) | Event::Other => Ok(()),
        }
    }

    /// Output of the build.
    pub(super) fn output(&mut self, text: &str) -> io::Result<()> {
        if self.live.is_some() {
            let lines: String = text.lines().map(|line| harmless(line) + "\n").collect();
            return self.draw(&lines);
        }
        let terminal = match self.output {
            Output::Out => io::stdout().is_terminal(),
            Output::Error => io::stderr().is_terminal(),
        };
        let shown;
        let bytes = if terminal {
            let ended = text.ends_with('\n');
            let lines: Vec<_> = text.lines().map(harmless).collect();
            shown = lines.join("\n") + if ended { "\n" } else { "" };
            shown.as_bytes()
        } else {
            text.as_bytes()
        };
        self.within_line = !bytes.is_empty() && !bytes.ends_with(b"\n");
        // Past the colour filter: what goes into a pipe or a file is what the build printed.
        match self.output {
            Output::Out => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()
            }
            Output::Error => io::stderr().lock().write_all(bytes),
        }
    }

    fn status(&mut self, status: &Status) -> io::Result<()> {
        self.state.clone_from(&status.state);
        if let Some(Live::Build(work)) = &mut self.live {
            work.set_state(&status.state);
        }
        let attempt = status.attempt.unwrap_or(1);
        match (&status.failure, status.state.as_str()) {
            (Some(failure), "queued") => {
                if let Some(Live::Build(work)) = &mut self.live {
                    work.start_over();
                }
                let text = format!(
                    "kiln: attempt {attempt} failed ({}): {}; it is tried again",
                    failure.code,
                    failure.message.trim_end_matches('.')
                );
                self.say(&styled(UNSURE, &text))
            }
            (_, "cancelling") if let Some(by) = status.superseded_by => {
                self.say(&styled(UNSURE, &format!("kiln: cancelling; build {by} is newer")))
            }
            // What ends the build is told at the end, in full.
            (_, "succeeded" | "failed" | "cancelled") => Ok(()),
            (_, state) if self.live.is_none() => {
                let text = if attempt > 1 {
                    format!("kiln: {state} (attempt {attempt})")
                } else {
                    format!("kiln: {state}")
                };
                self.say(&styled(FAINT, &text))
            }
            _ => self.tick(),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Whatever went wrong, nothing stays behind. There is nothing to do about a terminal that is gone.
        if self.live.take().is_some() {
            let _ = self.draw("");
        }
    }
}

/// The line that stands for lost output, as in the text that the service sends.
fn notice(gap: &Gap) -> String {
    let what = match gap.lines {
        Some(1) => "1 line is missing".to_owned(),
        Some(lines) => format!("{lines} lines are missing"),
        None => "output is missing".to_owned(),
    };
    format!("[kiln: {what} here: {}]\n", gap.reason.replace(['\n', '\r'], " "))
}
