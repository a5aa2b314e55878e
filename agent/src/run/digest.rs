//! The digest that a builder leaves in a file.

use std::{fs, io, path::Path};

use kiln_agent::wire::plan::DigestFile;

use crate::step::Failure;

/// Removes what an earlier run left, so that it can't be taken for the digest of this one.
pub(super) fn remove_old(file: &DigestFile) -> Result<(), Failure> {
    let path = path_of(file);
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failure::internal(format!("can't remove {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Reads the digest.
pub(super) fn read(file: &DigestFile) -> Result<String, Failure> {
    let path = path_of(file);
    let text = fs::read_to_string(path).map_err(|error| {
        Failure::internal(format!(
            "the builder succeeded but left no digest: {} can't be read: {error}",
            path.display()
        ))
    })?;
    let digest = match file {
        DigestFile::Text { .. } => Some(text.trim().to_owned()),
        DigestFile::Json { pointer, .. } => serde_json::from_str::<serde_json::Value>(&text)
            .ok()
            .and_then(|json| json.pointer(pointer)?.as_str().map(str::to_owned)),
    };
    digest.filter(|digest| is_digest(digest)).ok_or_else(|| {
        Failure::internal(format!(
            "the builder succeeded but {} holds no digest of the form sha256:<64 hexadecimal digits>",
            path.display()
        ))
    })
}

fn path_of(file: &DigestFile) -> &Path {
    match file {
        DigestFile::Json { path, .. } | DigestFile::Text { path } => path,
    }
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn read_json(content: &str) -> Result<String, Failure> {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("metadata.json");
        fs::write(&path, content).unwrap();
        read(&DigestFile::Json {
            path,
            pointer: "/containerimage.digest".to_owned(),
        })
    }

    #[test]
    fn from_metadata() {
        let digest = format!("sha256:{}", "a1".repeat(32));
        let json = format!(r#"{{"containerimage.digest": "{digest}", "other": {{}}}}"#);
        assert_eq!(read_json(&json).unwrap(), digest);
    }

    #[test]
    fn from_a_digest_file() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("digest");
        let digest = format!("sha256:{}", "0f".repeat(32));
        fs::write(&path, format!("{digest}\n")).unwrap();
        assert_eq!(read(&DigestFile::Text { path }).unwrap(), digest);
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let upper = format!(r#"{{"containerimage.digest": "sha256:{}"}}"#, "A1".repeat(32));
        for content in [
            "",
            "{}",
            "not json",
            r#"{"containerimage.digest": 5}"#,
            r#"{"containerimage.digest": "sha256:abc"}"#,
            &upper,
        ] {
            assert!(read_json(content).is_err(), "{content}");
        }
    }

    #[test]
    fn an_old_digest_is_removed_and_a_missing_one_is_fine() {
        let folder = TempDir::new().unwrap();
        let file = DigestFile::Text {
            path: folder.path().join("digest"),
        };
        remove_old(&file).unwrap();
        fs::write(path_of(&file), "old").unwrap();
        remove_old(&file).unwrap();
        assert!(read(&file).is_err());
    }
}
