//! Images as skopeo and tar see them, which know nothing of Kiln.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;
use tempfile::TempDir;

/// An image copied out of its registry.
pub(in crate::cluster) struct Image {
    /// Digest of what the registry holds under the name.
    pub(in crate::cluster) digest: String,
    /// The OCI configuration.
    pub(in crate::cluster) config: Value,
    layers: Vec<String>,
    folder: TempDir,
}

impl Image {
    /// Pulls an image, which verifies every digest in it.
    pub(in crate::cluster) fn pull(name: &str) -> Self {
        let source = format!("docker://{name}");
        let folder = tempfile::tempdir().expect("a folder");
        let target = format!("dir:{}", folder.path().display());
        let digest = skopeo(&["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &source]);
        skopeo(&["copy", "--quiet", "--src-tls-verify=false", &source, &target]);
        let read = |name: &str| std::fs::read(folder.path().join(name)).expect("a file of the image");
        let json = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).expect("JSON");
        let manifest = json(read("manifest.json"));
        let blob = |value: &Value| value["digest"].as_str().expect("a digest").replace("sha256:", "");
        Self {
            digest: digest.trim().to_owned(),
            config: json(read(&blob(&manifest["config"]))),
            layers: manifest["layers"]
                .as_array()
                .expect("layers")
                .iter()
                .map(blob)
                .collect(),
            folder,
        }
    }

    /// How many layers it has.
    pub(in crate::cluster) const fn layers(&self) -> usize {
        self.layers.len()
    }

    /// What a container would see, by path without a leading slash: the layers on top of each other, with what they
    /// delete (OCI image-spec, "Whiteouts").
    pub(in crate::cluster) fn tree(&self) -> BTreeMap<String, Entry> {
        let mut tree = BTreeMap::new();
        for layer in &self.layers {
            let output = Command::new("tar")
                .args(["--numeric-owner", "--quoting-style=literal", "-tvzf"])
                .arg(self.folder.path().join(layer))
                .output()
                .expect("tar runs");
            assert!(output.status.success(), "tar reads {layer}");
            let listing = String::from_utf8(output.stdout).expect("UTF-8");
            let entries: Vec<_> = listing.lines().map(Entry::read).collect();
            for (path, _) in &entries {
                let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
                let Some(hidden) = name.strip_prefix(".wh.") else {
                    continue;
                };
                let gone = match (folder, hidden == ".wh..opq") {
                    (folder, true) => folder.to_owned(),
                    ("", false) => hidden.to_owned(),
                    (folder, false) => format!("{folder}/{hidden}"),
                };
                let below = format!("{gone}/");
                tree.retain(|path: &String, _| *path != gone && !path.starts_with(&below));
            }
            tree.extend(entries.into_iter().filter(|(path, _)| !path.contains(".wh.")));
        }
        tree
    }

    /// The content of a file, from the topmost layer that has it.
    pub(in crate::cluster) fn file(&self, path: &str) -> Option<String> {
        self.layers.iter().rev().find_map(|layer| {
            let layer = self.folder.path().join(layer);
            let output = Command::new("tar").arg("-xOzf").arg(layer).arg(path).output();
            let output = output.expect("tar runs");
            let content = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.success().then_some(content)
        })
    }
}

/// A file, a folder or a link of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cluster) struct Entry {
    /// As `ls` writes it: `-rwxr-xr-x`, `drwxrwxrwt`, `lrwxrwxrwx`; `h` for a hard link.
    pub(in crate::cluster) mode: String,
    /// `<uid>/<gid>`.
    pub(in crate::cluster) owner: String,
    pub(in crate::cluster) size: u64,
    /// What a link points to.
    pub(in crate::cluster) target: Option<String>,
}

impl Entry {
    /// Reads a line of `tar -tv`.
    fn read(line: &str) -> (String, Self) {
        let mut rest = line;
        let mut field = || {
            let (field, after) = rest.trim_start().split_once(' ').expect("another field");
            rest = after;
            field.to_owned()
        };
        let (mode, owner, size, _date, _time) = (field(), field(), field(), field(), field());
        let (name, target) = match (rest.split_once(" -> "), rest.split_once(" link to ")) {
            (Some((name, target)), _) if mode.starts_with('l') => (name, Some(target.to_owned())),
            (_, Some((name, target))) if mode.starts_with('h') => (name, Some(target.to_owned())),
            _ => (rest, None),
        };
        let name = name.trim_start_matches("./").trim_matches('/').to_owned();
        // A device has its numbers there.
        let size = size.parse().unwrap_or(0);
        let entry = Self {
            mode,
            owner,
            size,
            target,
        };
        (name, entry)
    }
}

fn skopeo(arguments: &[&str]) -> String {
    let output = Command::new("skopeo").arg("--insecure-policy").args(arguments).output();
    let output = output.expect("skopeo runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "skopeo {arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("UTF-8")
}
