//! Processes that aren't children of ours: found again after a restart, and ended for sure.

use std::{
    ffi::OsStr,
    fmt, fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Stdio,
    str::FromStr,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    task::spawn_blocking,
    time::sleep,
};

/// How often the end of a process that isn't our child is looked for.
const POLL: Duration = Duration::from_millis(50);

/// A process for good: its number alone may be given to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProcessId {
    pid: i32,
    /// When it started, in clock ticks after boot.
    start: u64,
    boot: String,
}

impl ProcessId {
    /// Who has this number now, if anybody. A zombie counts.
    fn of(pid: i32) -> Option<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(Self {
            pid,
            start: Stat::read(pid)?.start,
            boot: boot.trim().to_owned(),
        })
    }

    pub(super) fn is_alive(&self) -> bool {
        let is_zombie = || Stat::read(self.pid).is_none_or(|stat| stat.state == 'Z');
        Self::of(self.pid).as_ref() == Some(self) && !is_zombie()
    }

    pub(super) fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // That it has ended meanwhile is the only error left.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.pid, self.start, self.boot)
    }
}

impl FromStr for ProcessId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let mut fields = text.split_whitespace();
        let mut next = || fields.next().ok_or(Malformed);
        Ok(Self {
            pid: next()?.parse().map_err(|_| Malformed)?,
            start: next()?.parse().map_err(|_| Malformed)?,
            boot: next()?.to_owned(),
        })
    }
}

/// The text isn't a process id with its start time and boot.
#[derive(Debug)]
pub(super) struct Malformed;

/// The parts of `/proc/<pid>/stat` that matter, see `proc_pid_stat(5)`.
struct Stat {
    state: char,
    parent: i32,
    start: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses and may hold anything, parentheses too.
        let fields: Vec<_> = text[text.rfind(')')? + 1..].split_whitespace().collect();
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
        })
    }
}

/// An agent at work.
pub(super) struct Agent {
    id: ProcessId,
    /// Absent when another kiln started it.
    child: Option<Child>,
}

impl Agent {
    /// Takes over an agent that runs, or has run.
    pub(super) const fn adopt(id: ProcessId) -> Self {
        Self { id, child: None }
    }

    /// Starts an agent, which leaves kiln's session: no terminal, and no Ctrl-C meant for kiln, reaches it.
    pub(super) fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        // Not waited for yet, so it is there, if only as a zombie.
        let id = child.id().and_then(|pid| ProcessId::of(pid.try_into().ok()?));
        if let Some(id) = id {
            Ok(Self { id, child: Some(child) })
        } else {
            child.start_kill()?;
            Err(io::Error::other("/proc tells nothing of the process just started"))
        }
    }

    pub(super) const fn id(&self) -> &ProcessId {
        &self.id
    }

    pub(super) async fn ended(&mut self) {
        match &mut self.child {
            // An error means that there is nothing to wait for.
            Some(child) => drop(child.wait().await),
            None => {
                while self.id.is_alive() {
                    sleep(POLL).await;
                }
            }
        }
    }
}

/// The processes of an attempt: they carry a mark in their environment, or have their root inside of its folder, as
/// everything that a Dockerfile's `RUN` starts.
#[derive(Clone)]
pub(super) struct Belongings {
    /// Each `NAME=value`.
    pub(super) marks: Vec<String>,
    pub(super) folder: PathBuf,
}

impl Belongings {
    /// Kills what there is until nothing is left; gives up when something survives that for long.
    pub(super) async fn end(self) -> io::Result<()> {
        for _ in 0..200 {
            let this = self.clone();
            let found = spawn_blocking(move || this.find()).await?;
            if found.is_empty() {
                return Ok(());
            }
            for pid in found {
                match kill(pid, Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            sleep(POLL).await;
        }
        Err(io::Error::other("processes of the attempt survive SIGKILL"))
    }

    fn find(&self) -> Vec<Pid> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
            .filter(|(_, proc)| self.holds(proc))
            .map(|(pid, _)| Pid::from_raw(pid))
            .collect()
    }

    fn holds(&self, proc: &Path) -> bool {
        let marked = || {
            let environment = fs::read(proc.join("environ")).unwrap_or_default();
            environment
                .split(|&byte| byte == 0)
                .any(|variable| self.marks.iter().any(|mark| mark.as_bytes() == variable))
        };
        fs::read_link(proc.join("root")).is_ok_and(|root| root.starts_with(&self.folder)) || marked()
    }
}

/// The agent that was told to leave its report here, when kiln had no time to write down its number.
pub(super) fn find_by_report(report: &Path) -> Option<ProcessId> {
    find(&[("--report", report.as_os_str())])
}

/// The agent that was started with all of these options.
pub(super) fn find(options: &[(&str, &OsStr)]) -> Option<ProcessId> {
    let holds = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments: Vec<_> = line.split(|&byte| byte == 0).collect();
        options.iter().all(|(name, value)| {
            let mut pairs = arguments.windows(2);
            pairs.any(|pair| pair == [name.as_bytes(), value.as_bytes()])
        })
    };
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let found: Vec<i32> = numbers.filter(holds).collect();
    // A child has its parent's command line until it has one of its own.
    let is_child = |pid: i32| Stat::read(pid).is_none_or(|stat| found.contains(&stat.parent));
    found
        .iter()
        .find(|pid| !is_child(**pid))
        .and_then(|pid| ProcessId::of(*pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let stat = "7 (a) Z (b)) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4321 0 0";
        let stat = Stat::parse(stat).expect("parses");
        assert_eq!((stat.state, stat.parent, stat.start), ('S', 1, 4321));
        assert!(Stat::parse("garbage").is_none());
    }

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number() {
        let pid = std::process::id().try_into().expect("fits");
        let me = ProcessId::of(pid).expect("runs");
        assert!(me.is_alive());
        assert_eq!(me.to_string().parse::<ProcessId>().expect("reads back"), me);
        let earlier = ProcessId {
            start: me.start - 1,
            ..me.clone()
        };
        assert!(!earlier.is_alive());
        let before_boot = ProcessId {
            boot: "another".to_owned(),
            ..me
        };
        assert!(!before_boot.is_alive());
    }
}
