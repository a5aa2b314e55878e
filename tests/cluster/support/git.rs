//! Repositories on the cluster's git server.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;
use uuid::Uuid;

use super::variable;

/// A repository that the git server serves, and a working tree to make commits in. Both go with it.
pub(in crate::cluster) struct Repository {
    pub(in crate::cluster) url: String,
    bare: PathBuf,
    tree: TempDir,
}

impl Repository {
    /// A repository that anybody may read.
    pub(in crate::cluster) fn public() -> Self {
        Self::create("")
    }

    /// A repository that needs a login.
    pub(in crate::cluster) fn private() -> Self {
        Self::create("private/")
    }

    fn create(folder: &str) -> Self {
        let path = format!("{folder}test-{}.git", Uuid::new_v4());
        let bare = Path::new(&variable("KILN_TEST_GIT_DIR")).join(&path);
        let tree = tempfile::tempdir().expect("a folder");
        git(Path::new("/"), &["init", "-q", "--bare", "-b", "main", utf8(&bare)]);
        git(tree.path(), &["init", "-q", "-b", "main"]);
        git(tree.path(), &["remote", "add", "origin", utf8(&bare)]);
        Self {
            url: format!("{}/{path}", variable("KILN_TEST_GIT")),
            bare,
            tree,
        }
    }

    /// The same by ssh.
    pub(in crate::cluster) fn ssh_url(&self) -> String {
        self.url
            .replace(&variable("KILN_TEST_GIT"), &variable("KILN_TEST_GIT_SSH"))
    }

    /// Makes a symbolic link, for the next commit.
    pub(in crate::cluster) fn link(&self, path: &str, target: &str) {
        let path = self.tree.path().join(path);
        std::fs::create_dir_all(path.parent().expect("within the tree")).expect("a folder");
        std::os::unix::fs::symlink(target, path).expect("a link");
    }

    /// The working tree; what is put into it goes into the next commit.
    pub(in crate::cluster) fn folder(&self) -> &Path {
        self.tree.path()
    }

    /// Runs git in the working tree, and returns what it says.
    pub(in crate::cluster) fn git(&self, arguments: &[&str]) -> String {
        git(self.tree.path(), arguments).trim().to_owned()
    }

    /// Commits these files to the branch `main`. Returns the commit's id.
    pub(in crate::cluster) fn commit(&self, files: &[(&str, &str)]) -> String {
        for (path, content) in files {
            let path = self.tree.path().join(path);
            std::fs::create_dir_all(path.parent().expect("within the tree")).expect("a folder");
            std::fs::write(path, content).expect("a file");
        }
        git(self.tree.path(), &["add", "--all"]);
        git(self.tree.path(), &["commit", "-q", "-m", "Change"]);
        git(self.tree.path(), &["push", "-q", "origin", "main"]);
        git(self.tree.path(), &["rev-parse", "HEAD"]).trim().to_owned()
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        // Nothing depends on it.
        let _ = std::fs::remove_dir_all(&self.bare);
    }
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(folder)
        .args(["-c", "user.name=Kiln", "-c", "user.email=kiln@example.org"])
        .args(arguments)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .expect("git runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("UTF-8")
}
