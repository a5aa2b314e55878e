//! Processes that nobody waits for: they left their group and lost their parent, and so became our children, whether
//! we are PID 1 or a subreaper.

use std::fs;

use nix::{
    sys::signal::{Signal, kill as send},
    unistd::{Pid, getpid},
};

/// Kills all direct children and returns how many there were. Their own children come to us next: repeat until there
/// is none. A child keeps its number until we reap it, so no stranger can be hit.
pub(super) fn kill() -> usize {
    let children = children_of(getpid());
    for &pid in &children {
        // It may have ended since, or be somebody that we may not signal.
        let _ = send(pid, Signal::SIGKILL);
    }
    children.len()
}

fn children_of(parent: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/stat"))
                .ok()
                .and_then(|stat| parent_in(&stat))
                == Some(parent)
        })
        .map(Pid::from_raw)
        .collect()
}

/// The parent in a `/proc/PID/stat` line. The name before it is in parentheses and may hold anything, parentheses and
/// spaces too.
fn parent_in(stat: &str) -> Option<Pid> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(1)?.parse().ok().map(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent_in("12 (sh) S 7 12 12 0 -1"), Some(Pid::from_raw(7)));
        assert_eq!(parent_in("12 (a) b) (c) R 1 12 12 0 -1"), Some(Pid::from_raw(1)));
        assert_eq!(parent_in("garbage"), None);
    }
}
