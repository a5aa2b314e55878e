//! What the host must have, each missing thing named with how to get it.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use nix::unistd::{User, geteuid};

use crate::runner::Readiness;

/// Whether builds can run here.
pub(super) fn readiness(agent: &Path) -> Readiness {
    let missing = missing(agent);
    if missing.is_empty() {
        Readiness::Ready
    } else {
        Readiness::NotReady(missing.join("; "))
    }
}

fn missing(agent: &Path) -> Vec<String> {
    let mut missing = Vec::new();
    for (program, package) in [("git", "git"), ("buildah", "buildah")] {
        if find_program(program).is_none() {
            missing.push(format!("{program} isn't installed: apt-get install {package}"));
        }
    }
    if !is_program(agent) {
        missing.push(format!(
            "there is no kiln-agent at {}: build it with `cargo build -p kiln-agent`, or name its path in the configuration",
            agent.display()
        ));
    }
    if !geteuid().is_root() {
        missing.extend(missing_for_user());
    }
    missing
}

/// What buildah needs for a user namespace when it doesn't run as root.
fn missing_for_user() -> Vec<String> {
    let mut missing = Vec::new();
    if find_program("newuidmap").is_none() {
        missing.push("newuidmap isn't installed: apt-get install uidmap".to_owned());
    }
    let uid = geteuid();
    let name = User::from_uid(uid)
        .ok()
        .flatten()
        .map_or_else(|| uid.to_string(), |user| user.name);
    let has_range = |file: &str| {
        let lines = fs::read_to_string(file).unwrap_or_default();
        lines.lines().any(|line| {
            line.split_once(':')
                .is_some_and(|(who, _)| who == name || who == uid.to_string())
        })
    };
    if !has_range("/etc/subuid") || !has_range("/etc/subgid") {
        missing.push(format!(
            "the user {name} has no subordinate ids: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
        ));
    }
    for (file, setting) in [
        ("/proc/sys/user/max_user_namespaces", "user.max_user_namespaces=15000"),
        (
            "/proc/sys/kernel/unprivileged_userns_clone",
            "kernel.unprivileged_userns_clone=1",
        ),
    ] {
        if fs::read_to_string(file).is_ok_and(|value| value.trim() == "0") {
            missing.push(format!(
                "ordinary users may not make user namespaces: sudo sysctl -w {setting}"
            ));
        }
    }
    missing
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_agent_is_named_with_its_path() {
        let Readiness::NotReady(why) = readiness(Path::new("/nowhere/kiln-agent")) else {
            panic!("ready without an agent");
        };
        assert!(
            why.contains("/nowhere/kiln-agent") && why.contains("cargo build -p kiln-agent"),
            "{why}"
        );
    }

    #[test]
    fn programs_are_files_that_can_be_run() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-anywhere").is_none());
        assert!(!is_program(Path::new("/usr")));
        assert!(!is_program(Path::new("/etc/passwd")));
    }
}
