//! Images as skopeo and tar see them, which know nothing of Kiln.

use std::process::Command;

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

fn skopeo(arguments: &[&str]) -> String {
    let output = Command::new("skopeo").arg("--insecure-policy").args(arguments).output();
    let output = output.expect("skopeo runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "skopeo {arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("UTF-8")
}
