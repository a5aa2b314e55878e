//! Removes an attempt's folder, in which a builder may have left mounts, and files of other users.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
};

use nix::{
    mount::{MntFlags, umount2},
    unistd::geteuid,
};
use tokio::process::Command;

/// Removes the folder. Succeeds when it is gone already.
pub(super) async fn remove(folder: &Path) -> io::Result<()> {
    let path = folder.to_owned();
    let removed = tokio::task::spawn_blocking(move || {
        unmount(&path)?;
        remove_tree(&path)
    });
    match removed.await.map_err(io::Error::other)? {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !geteuid().is_root() => {
            remove_in_namespace(folder).await
        }
        done => done,
    }
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Files that a rootless build made as some user of its namespace can be removed from inside of such a one only.
async fn remove_in_namespace(folder: &Path) -> io::Result<()> {
    let output = Command::new("buildah")
        .args(["unshare", "rm", "-rf", "--"])
        .arg(folder)
        .stdin(Stdio::null())
        .output()
        .await?;
    if output.status.success() {
        Ok(())
    } else {
        Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ))
    }
}

/// Undoes the mounts under the folder, the innermost first.
fn unmount(folder: &Path) -> io::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mounts: Vec<PathBuf> = mount_points(&table).filter(|point| point.starts_with(folder)).collect();
    for point in mounts.iter().rev() {
        umount2(point, MntFlags::MNT_DETACH)?;
    }
    Ok(())
}

/// The fifth field of each line, see `proc_pid_mountinfo(5)`.
fn mount_points(table: &str) -> impl Iterator<Item = PathBuf> {
    table
        .lines()
        .filter_map(|line| Some(unescape(line.split(' ').nth(4)?).into()))
}

/// Undoes the kernel's escapes for the characters that separate fields.
fn unescape(field: &str) -> String {
    field
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read() {
        let table = "36 35 98:0 /mnt1 /mnt/a\\040b rw,noatime master:1 - ext3 /dev/root rw\n\
                     37 36 0:5 / /mnt/a\\040b/c rw - tmpfs tmpfs rw\n";
        let points: Vec<_> = mount_points(table).collect();
        assert_eq!(points, [Path::new("/mnt/a b"), Path::new("/mnt/a b/c")]);
    }

    #[tokio::test]
    async fn what_is_gone_is_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let inner = folder.path().join("x");
        fs::create_dir_all(inner.join("y")).expect("made");
        remove(&inner).await.expect("removed");
        assert!(!inner.exists());
        remove(&inner).await.expect("removed already");
    }
}
