//! The lines at the bottom of a terminal that are redrawn while output scrolls above them.
//!
//! Between two writes the cursor stands on the first of them. A terminal that is resized wraps its lines anew and keeps
//! the cursor at its character, so whatever became of the lines, erasing from the cursor to the end of the screen takes
//! away those lines and nothing else. Going up by as many lines as were drawn, as libraries for progress bars do, finds
//! the wrong place after a resize: it leaves some behind, or takes what scrolled by with it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use console::truncate_str;

use super::{text::size, wire::Step};

/// How often the lines are redrawn, and how long they may show an old width.
pub(super) const TICK: Duration = Duration::from_millis(120);
/// Most steps of a builder that are shown at work at the same time.
const AT_WORK: usize = 4;
/// Columns of a bar.
const BAR: u64 = 30;

/// From the cursor to the end of the screen.
const ERASE: &str = "\r\u{1b}[J";
/// While lines don't wrap, one line is one row, even when the terminal just became narrower than it is known to be.
const NO_WRAP: &str = "\u{1b}[?7l";
const WRAP: &str = "\u{1b}[?7h";

/// Columns and rows of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) columns: usize,
    pub(super) rows: usize,
}

/// What to write so that `above` (whole lines, or nothing) scrolls by in full and these lines stand below it, instead of
/// those that did.
pub(super) fn frame(above: &str, lines: &[String], size: Size) -> String {
    // A row is left for what is above; the first of more lines than rows would be out of reach.
    let lines = &lines[..lines.len().min(size.rows.saturating_sub(1))];
    if lines.is_empty() {
        return format!("{ERASE}{above}");
    }
    let room = size.columns.saturating_sub(1).max(1);
    let shown: Vec<_> = lines.iter().map(|line| truncate_str(line, room, "…")).collect();
    let lines = shown.join("\r\n");
    let up = match shown.len() {
        1 => String::new(),
        rows => format!("\u{1b}[{}A", rows - 1),
    };
    format!("{ERASE}{above}{NO_WRAP}{lines}{WRAP}{up}\r")
}

/// What is redrawn.
#[derive(Debug)]
pub(super) enum Live {
    /// A build that is followed.
    Build(Work),
    /// A folder that is sent.
    Sending(Sending),
}

impl Live {
    /// The lines as they are at this moment.
    pub(super) fn lines(&self, now: Instant) -> Vec<String> {
        match self {
            Self::Build(work) => work.lines(now),
            Self::Sending(sending) => vec![sending.line()],
        }
    }
}

/// A folder that is sent.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) what: String,
    pub(super) bytes: u64,
    pub(super) sent: u64,
}

impl Sending {
    fn line(&self) -> String {
        let sent = self.sent.min(self.bytes);
        let filled = u64::try_from(u128::from(sent) * u128::from(BAR) / u128::from(self.bytes.max(1))).unwrap_or(BAR);
        let bar: String = (0..BAR).map(|column| if column < filled { '=' } else { ' ' }).collect();
        format!("Sending {} [{bar}] {}/{}", self.what, size(sent), size(self.bytes))
    }
}

/// What a build is doing.
#[derive(Debug)]
pub(super) struct Work {
    begun: Instant,
    state: String,
    step: String,
    /// Steps of the builder that are at work.
    steps: BTreeMap<u64, (String, Instant)>,
    done: u64,
    cached: u64,
    /// Why nothing is heard of it, as far as that is known.
    reason: Option<String>,
    /// What is asked of the person at the terminal.
    question: Option<String>,
}

impl Work {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            begun: now,
            state: "queued".to_owned(),
            step: String::new(),
            steps: BTreeMap::new(),
            done: 0,
            cached: 0,
            reason: None,
            question: None,
        }
    }

    pub(super) fn set_state(&mut self, state: &str) {
        state.clone_into(&mut self.state);
    }

    /// Sets why nothing is heard of it, or that something is.
    pub(super) fn wait_for(&mut self, reason: Option<String>) {
        self.reason = reason;
    }

    /// Sets what is asked, or withdraws it.
    pub(super) fn ask(&mut self, question: Option<String>) {
        self.question = question;
    }

    /// Another attempt begins.
    pub(super) fn start_over(&mut self) {
        self.steps.clear();
        (self.done, self.cached) = (0, 0);
    }

    pub(super) fn on_step(&mut self, step: &Step, name: String, now: Instant) {
        let started = step.phase == "started";
        match step.vertex {
            None if started => self.step.clone_from(&step.step),
            None => self.step.clear(),
            Some(vertex) if started => {
                self.steps.insert(vertex, (name, now));
            }
            Some(vertex) => {
                self.steps.remove(&vertex);
                self.done += 1;
                self.cached += u64::from(step.cached == Some(true));
            }
        }
    }

    fn lines(&self, now: Instant) -> Vec<String> {
        let mut text = self.state.clone();
        if !self.step.is_empty() {
            text = format!("{text} · {}", self.step);
        }
        if self.done > 0 {
            text = format!("{text} · steps done: {}, cached: {}", self.done, self.cached);
        }
        if let Some(reason) = &self.reason {
            text = format!("{text} · {reason}");
        }
        let line = |since: Instant, text: &str| {
            let spinner = spinner(now.saturating_duration_since(self.begun));
            let elapsed = elapsed(now.saturating_duration_since(since));
            format!("{spinner} {elapsed:>4} {text}")
        };
        let mut lines = vec![line(self.begun, &text)];
        let steps = self.steps.values().take(AT_WORK);
        lines.extend(steps.map(|(name, since)| format!("  {}", line(*since, name))));
        lines.extend(self.question.clone());
        lines
    }
}

fn spinner(since: Duration) -> char {
    const SPINNER: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
    let tick = since.as_millis() / TICK.as_millis();
    // The remainder is less than ten.
    SPINNER[usize::try_from(tick % 10).unwrap_or(0)]
}

/// A span of time in few columns: `12s`, `3m20s`, `2h05m`.
fn elapsed(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use avt::Terminal;
    use proptest::prelude::*;

    use super::*;

    fn step(vertex: u64, phase: &str) -> Step {
        Step {
            step: "build".to_owned(),
            phase: phase.to_owned(),
            vertex: Some(vertex),
            name: None,
            cached: Some(vertex == 1),
        }
    }

    #[test]
    fn what_is_at_work_is_shown_with_its_time() {
        let begun = Instant::now();
        let mut work = Work::new(begun);
        assert_eq!(work.lines(begun), ["⠋   0s queued"]);
        work.wait_for(Some("2 builds go first".to_owned()));
        assert_eq!(work.lines(begun), ["⠋   0s queued · 2 builds go first"]);
        work.wait_for(None);
        work.set_state("running");
        for vertex in 1..=6 {
            work.on_step(&step(vertex, "started"), format!("step {vertex}"), begun);
        }
        work.on_step(&step(1, "finished"), String::new(), begun);
        work.ask(Some("Really?".to_owned()));
        let later = begun + Duration::from_secs(75);
        assert_eq!(
            work.lines(later),
            [
                "⠴ 1m15s running · steps done: 1, cached: 1",
                "  ⠴ 1m15s step 2",
                "  ⠴ 1m15s step 3",
                "  ⠴ 1m15s step 4",
                "  ⠴ 1m15s step 5",
                "Really?",
            ]
        );
        work.start_over();
        work.ask(None);
        assert_eq!(work.lines(begun + Duration::from_hours(3)), ["⠋ 3h00m running"]);
    }

    #[test]
    fn a_bar_is_full_when_all_is_sent() {
        let mut sending = Sending {
            what: "2 files".to_owned(),
            bytes: 2048,
            sent: 1024,
        };
        assert_eq!(
            sending.line(),
            format!("Sending 2 files [{:30}] 1 KiB/2 KiB", "=".repeat(15))
        );
        sending.sent = 4096;
        assert_eq!(
            sending.line(),
            format!("Sending 2 files [{}] 2 KiB/2 KiB", "=".repeat(30))
        );
        (sending.bytes, sending.sent) = (0, 0);
        assert_eq!(sending.line(), format!("Sending 2 files [{:30}] 0 B/0 B", ""));
    }

    /// What happens to a terminal.
    #[derive(Clone, Debug)]
    enum Happening {
        Print(usize),
        Redraw(usize),
        /// It gets another size, which is known only after one more write.
        Resize(usize, usize),
    }

    fn happenings() -> impl Strategy<Value = Vec<Happening>> {
        let happening = prop_oneof![
            3 => (0..150_usize).prop_map(Happening::Print),
            2 => (0..7_usize).prop_map(Happening::Redraw),
            2 => (2..120_usize, 7..30_usize).prop_map(|(columns, rows)| Happening::Resize(columns, rows)),
        ];
        proptest::collection::vec(happening, 0..40)
    }

    proptest! {
        /// Whatever the size and when it changes: every line that was printed is there once, in full, and nothing else.
        #[test]
        fn a_resize_takes_no_line_away_and_leaves_none_behind(happenings in happenings()) {
            let mut size = Size { columns: 80, rows: 24 };
            let mut terminal = Terminal::with_scrollback(size.columns, size.rows, None).expect("a size");
            let mut lines: Vec<String> = Vec::new();
            let mut printed = Vec::new();
            for happening in happenings {
                let mut above = String::new();
                let mut new = size;
                match happening {
                    Happening::Print(length) => {
                        let line = format!("<{}{}>", printed.len(), "x".repeat(length));
                        above = format!("{line}\r\n");
                        printed.push(line);
                    }
                    Happening::Redraw(count) => {
                        lines = (0..count).map(|n| format!("status {n} {}", "~".repeat(n * 17))).collect();
                    }
                    Happening::Resize(columns, rows) => {
                        new = Size { columns, rows };
                        terminal.resize(columns, rows);
                    }
                }
                terminal.feed(frame(&above, &lines, size).as_str());
                size = new;
            }
            terminal.feed(frame("", &[], size).as_str());
            let mut seen = terminal.primary_screen().text();
            while seen.last().is_some_and(String::is_empty) {
                seen.pop();
            }
            prop_assert_eq!(seen, printed);
        }
    }

    #[test]
    fn a_terminal_with_few_rows_shows_what_fits() {
        let mut terminal = Terminal::with_scrollback(20, 6, None).expect("a size");
        let lines: Vec<_> = (0..6).map(|n| format!("status {n}")).collect();
        let size = |rows| Size { columns: 20, rows };
        terminal.feed(frame("one\r\n", &lines, size(6)).as_str());
        assert_eq!(
            terminal.screen().text(),
            ["one", "status 0", "status 1", "status 2", "status 3", "status 4"]
        );
        terminal.resize(20, 2);
        terminal.feed(frame("two\r\n", &lines, size(2)).as_str());
        assert_eq!(terminal.screen().text(), ["one", "two", "status 0"]);
        terminal.resize(20, 1);
        terminal.feed(frame("three\r\n", &lines, size(1)).as_str());
        assert_eq!(terminal.screen().text().join(" ").trim(), "one two three");
    }
}
