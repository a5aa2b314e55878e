//! URLs, refs, commits and paths of sources: what is accepted becomes an argument of git, so it must not be read as
//! anything else.
#![no_main]

use kiln::{
    client::fuzzing::place,
    domain::spec::{ArchiveUrl, CommitId, GitRef, GitUrl, RelPath},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let plain = |text: &str| !text.starts_with('-') && !text.bytes().any(|byte| byte.is_ascii_control());
    if let Ok(url) = text.parse::<GitUrl>() {
        let url = url.as_str();
        assert!(
            ["http://", "https://", "ssh://"]
                .iter()
                .any(|scheme| url.starts_with(scheme))
                && plain(url)
        );
        assert_eq!(url.parse::<GitUrl>().expect("accepted again").as_str(), url);
    }
    if let Ok(url) = text.parse::<ArchiveUrl>() {
        let url = url.as_str();
        assert!(["http://", "https://"].iter().any(|scheme| url.starts_with(scheme)) && plain(url));
        assert_eq!(url.parse::<ArchiveUrl>().expect("accepted again").as_str(), url);
    }
    if let Ok(reference) = text.parse::<GitRef>() {
        // The agent puts `refs/` in front; what a colon follows would be the name it is stored under.
        assert!(plain(reference.as_str()) && !text.contains(':'));
    }
    if let Ok(commit) = text.parse::<CommitId>() {
        assert!(matches!(commit.as_str().len(), 40 | 64));
    }
    if let Ok(path) = text.parse::<RelPath>() {
        let path = path.as_str();
        assert!(
            !path.starts_with('/') && path.split('/').all(|part| part != ".."),
            "{path}"
        );
    }
    place(text);
});
