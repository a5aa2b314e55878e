//! What a person sees while a build goes on: lines that stay, and on a terminal below them what is being done now.
//!
//! In a pipe or a CI log there are only lines: the build's output as it was printed on standard output, everything else on
//! standard error. On a terminal the output scrolls above a few lines that are redrawn.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write},
    time::Duration,
};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use console::{Term, truncate_str};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    args::Color,
    text::harmless,
    wire::{Entry, Event, Gap, Status, Step},
};

/// How often what is redrawn is redrawn.
const TICK: Duration = Duration::from_millis(120);
/// Most steps of a builder that are shown at work at the same time.
const AT_WORK: usize = 4;

/// Columns of a redrawn line that its text leaves free.
const ROOM: usize = 16;

/// Standard output and error, with colours where they are wanted.
pub(super) struct Screen {
    out: AutoStream<io::Stdout>,
    error: AutoStream<io::Stderr>,
    /// Whether there is somebody who can be asked.
    pub(super) interactive: bool,
    live: Option<Live>,
    /// Whether the output ended within a line.
    within_line: bool,
    /// Whether the connection is known to be gone.
    away: bool,
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

struct Live {
    bars: MultiProgress,
    /// What the build is doing.
    status: ProgressBar,
    /// Steps of the builder that are at work.
    steps: BTreeMap<u64, ProgressBar>,
    done: u64,
    cached: u64,
    state: String,
    step: String,
    /// Whether it is taken away at present.
    hidden: bool,
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
        match &self.live {
            Some(live) if !live.hidden => live.line(&self.colored(text)),
            _ => writeln!(self.error, "{text}"),
        }
    }

    fn colored(&self, text: &str) -> String {
        match self.error.current_choice() {
            ColorChoice::Never => anstream::adapter::strip_str(text).to_string(),
            _ => text.to_owned(),
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

    /// A bar for something whose size is known, on a terminal.
    pub(super) fn bar(&self, total: u64, what: &str) -> ProgressBar {
        if !self.interactive {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        // The template is constant; without it there is only a plainer bar.
        if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {eta}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        bar
    }

    /// Begins to show what a build is doing now, where that can be redrawn.
    pub(super) fn begin(&mut self, output: Output) {
        self.output = output;
        if self.interactive {
            self.live = Some(Live::new());
        }
    }

    /// Takes what is redrawn away, to ask something or for good.
    pub(super) fn pause(&mut self) {
        if let Some(live) = &mut self.live {
            live.hide();
        }
    }

    /// Shows it again.
    pub(super) fn resume(&mut self) {
        if let Some(live) = &mut self.live {
            live.show();
        }
    }

    /// Takes what is redrawn away for good; the cursor stands at the beginning of a line.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.pause();
        self.live = None;
        self.end_line()
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

    /// Shows something that happened to the build.
    pub(super) fn show(&mut self, entry: &Entry) -> io::Result<()> {
        match &entry.event {
            Event::Log(log) => self.output(&log.text),
            Event::Gap(gap) => {
                self.end_line()?;
                self.output(&notice(gap))
            }
            Event::Status(status) => self.status(status),
            Event::Step(step) => {
                if let Some(live) = &mut self.live {
                    live.on_step(step);
                }
                Ok(())
            }
            Event::End(_) | Event::Other => Ok(()),
        }
    }

    /// Output of the build.
    pub(super) fn output(&mut self, text: &str) -> io::Result<()> {
        if let Some(live) = &self.live {
            for line in text.lines() {
                live.line(&harmless(line))?;
            }
            return Ok(());
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
        if let Some(live) = &mut self.live {
            live.state.clone_from(&status.state);
            live.redraw();
        }
        let attempt = status.attempt.unwrap_or(1);
        match (&status.failure, status.state.as_str()) {
            (Some(failure), "queued") => {
                if let Some(live) = &mut self.live {
                    live.forget_steps();
                    (live.done, live.cached) = (0, 0);
                }
                let text = format!(
                    "kiln: attempt {attempt} failed ({}): {}; it is tried again",
                    failure.code, failure.message
                );
                self.say(&styled(UNSURE, &text))
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
            _ => Ok(()),
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

/// A text that leaves room on its line: were the line full, the `^C` that a terminal shows for Ctrl-C would begin another,
/// and what is redrawn would be sought in the wrong place.
fn short(text: &str) -> String {
    let (_, columns) = Term::stderr().size();
    let room = usize::from(columns).saturating_sub(ROOM).max(1);
    truncate_str(text, room, "…").into_owned()
}

impl Live {
    fn new() -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let mut live = Self {
            status: bars.add(Self::spinner("{spinner} {elapsed:>4} {msg}")),
            steps: BTreeMap::new(),
            done: 0,
            cached: 0,
            state: "queued".to_owned(),
            step: String::new(),
            hidden: false,
            bars,
        };
        live.show();
        live
    }

    fn spinner(template: &str) -> ProgressBar {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.tick_strings(&["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏", " "]));
        }
        bar
    }

    fn line(&self, text: &str) -> io::Result<()> {
        self.bars.println(text)
    }

    fn show(&mut self) {
        self.bars.set_draw_target(ProgressDrawTarget::stderr());
        self.hidden = false;
        for bar in self.steps.values().chain([&self.status]) {
            bar.enable_steady_tick(TICK);
        }
        self.redraw();
    }

    fn hide(&mut self) {
        // Nothing draws any more when it is cleared.
        for bar in self.steps.values().chain([&self.status]) {
            bar.disable_steady_tick();
        }
        // There is nothing to do about a terminal that is gone.
        let _ = self.bars.clear();
        self.bars.set_draw_target(ProgressDrawTarget::hidden());
        self.hidden = true;
    }

    fn forget_steps(&mut self) {
        for (_, bar) in std::mem::take(&mut self.steps) {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
    }

    fn redraw(&self) {
        let mut text = self.state.clone();
        if !self.step.is_empty() {
            text = format!("{text} · {}", self.step);
        }
        if self.done > 0 {
            text = format!("{text} · steps done: {}, cached: {}", self.done, self.cached);
        }
        self.status.set_message(short(&text));
    }

    fn on_step(&mut self, step: &Step) {
        let Some(vertex) = step.vertex else {
            self.step = if step.phase == "started" {
                step.step.clone()
            } else {
                String::new()
            };
            self.redraw();
            return;
        };
        if step.phase == "started" {
            if self.steps.len() < AT_WORK {
                let bar = self.bars.add(Self::spinner("  {spinner} {elapsed:>4} {msg}"));
                bar.set_message(short(&harmless(step.name.as_deref().unwrap_or("a step"))));
                bar.enable_steady_tick(TICK);
                self.steps.insert(vertex, bar);
            }
            return;
        }
        if let Some(bar) = self.steps.remove(&vertex) {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
        self.done += 1;
        self.cached += u64::from(step.cached == Some(true));
        self.redraw();
    }
}
