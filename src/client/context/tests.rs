//! Folders as contexts.

use std::{
    io::Read as _,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::UnixListener,
    },
};

use flate2::read::GzDecoder;
use proptest::prelude::*;
use tar::EntryType;
use tempfile::TempDir;

use super::*;
use crate::client::ignore::Inherited;

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (path, text) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, text).expect("written");
    }
    folder
}

fn read(folder: &TempDir) -> Context {
    Context::read(folder.path(), None).expect("readable")
}

fn paths(context: &Context) -> Vec<&str> {
    context.paths().map(|path| path.to_str().expect("UTF-8")).collect()
}

fn packed(context: &Context) -> Vec<u8> {
    context.pack(Vec::new(), |_| ()).expect("packs")
}

/// Name, kind, mode, content or target of every entry.
fn unpacked(archive: &[u8]) -> Vec<(String, EntryType, u32, String)> {
    let mut archive = tar::Archive::new(GzDecoder::new(archive));
    let entries = archive.entries().expect("an archive");
    entries
        .map(|entry| {
            let mut entry = entry.expect("an entry");
            let name = entry.path().expect("a name").display().to_string();
            let header = entry.header().clone();
            assert_eq!(
                (header.uid().expect("a number"), header.gid().expect("a number")),
                (0, 0)
            );
            let target = entry
                .link_name()
                .expect("a target")
                .map(|target| target.display().to_string());
            let mut text = String::new();
            entry.read_to_string(&mut text).expect("text");
            (
                name,
                header.entry_type(),
                header.mode().expect("a mode"),
                target.unwrap_or(text),
            )
        })
        .collect()
}

#[test]
fn what_the_builder_reads_is_sent_whatever_the_ignore_file_says() {
    let folder = folder(&[
        (".dockerignore", "*\n!src/*.c\n"),
        ("Dockerfile", "FROM scratch"),
        ("src/main.c", ""),
        ("src/main.o", ""),
        ("docs/x", ""),
        (".hidden", ""),
    ]);
    let context = read(&folder);
    assert_eq!(paths(&context), [".dockerignore", "Dockerfile", "src", "src/main.c"]);
    assert_eq!(
        (context.files(), context.dockerfile.as_str(), context.subdir),
        (3, "Dockerfile", "")
    );
}

#[test]
fn a_dockerfile_has_its_own_ignore_file() {
    let folder = folder(&[
        (".dockerignore", "b"),
        ("docker/app.Dockerfile", ""),
        ("docker/app.Dockerfile.dockerignore", "a\ndocker"),
        ("a", ""),
        ("b", ""),
    ]);
    let context = Context::read(folder.path(), Some(&folder.path().join("docker/app.Dockerfile"))).expect("readable");
    assert_eq!(
        paths(&context),
        [
            ".dockerignore",
            "b",
            "docker",
            "docker/app.Dockerfile",
            "docker/app.Dockerfile.dockerignore"
        ]
    );
    assert_eq!(context.dockerfile, "docker/app.Dockerfile");
}

#[test]
fn a_dockerfile_from_elsewhere_stands_beside_the_context() {
    let (context_folder, elsewhere) = (folder(&[("a", "1")]), folder(&[("x.Dockerfile", "FROM scratch")]));
    let context = Context::read(context_folder.path(), Some(&elsewhere.path().join("x.Dockerfile"))).expect("readable");
    assert_eq!(
        (context.dockerfile.as_str(), context.subdir),
        ("/Dockerfile", "context")
    );
    let names: Vec<_> = unpacked(&packed(&context)).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["Dockerfile", "context/a"]);
}

#[test]
fn links_stay_links() {
    let folder = folder(&[("Dockerfile", ""), ("run.sh", "#!/bin/sh\n")]);
    fs::set_permissions(folder.path().join("run.sh"), fs::Permissions::from_mode(0o755)).expect("set");
    symlink("Dockerfile", folder.path().join("same")).expect("linked");
    symlink("nowhere", folder.path().join("broken")).expect("linked");
    let _socket = UnixListener::bind(folder.path().join("socket")).expect("bound");
    let context = read(&folder);
    assert_eq!(context.left_out, [Path::new("socket")]);
    let entries = unpacked(&packed(&context));
    let entry = |name: &str| entries.iter().find(|entry| entry.0 == name).expect(name);
    assert_eq!(
        (entry("same").1, entry("same").3.as_str()),
        (EntryType::Symlink, "Dockerfile")
    );
    assert_eq!(
        (entry("broken").1, entry("broken").3.as_str()),
        (EntryType::Symlink, "nowhere")
    );
    assert_eq!((entry("run.sh").2, entry("run.sh").3.as_str()), (0o755, "#!/bin/sh\n"));
    assert_eq!(entries.len(), 4);
}

#[test]
fn links_that_lead_out_are_named_all_at_once() {
    let folder = folder(&[("Dockerfile", ""), (".dockerignore", "ignored\n"), ("sub/x", "")]);
    for (path, target) in [
        ("etc", "/etc"),
        ("sub/up", "../.."),
        ("sub/inside", "../Dockerfile"),
        ("around", "around"),
        ("through", "sub/up/x"),
        ("ignored", "/root"),
    ] {
        symlink(target, folder.path().join(path)).expect("linked");
    }
    let error = Context::read(folder.path(), None).expect_err("leads out");
    let ContextError::Links(links) = &error else {
        panic!("{error}")
    };
    let links: Vec<_> = links.iter().map(|(path, _)| path.to_str().expect("UTF-8")).collect();
    assert_eq!(links, ["around", "etc", "sub/up", "through"]);
    assert!(
        error.to_string().contains("\n    etc -> /etc\n    sub/up -> ../..\n"),
        "{error}"
    );
}

#[test]
fn the_same_folder_gives_the_same_archive() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let folder = folder(&[("Dockerfile", "FROM scratch"), (&long, "x"), ("é/ü", "y")]);
    let (first, second) = (packed(&read(&folder)), packed(&read(&folder)));
    assert_eq!(first, second);
    assert!(unpacked(&first).iter().any(|(name, ..)| *name == long));
    let mut bytes = 0;
    read(&folder).pack(Vec::new(), |read| bytes += read).expect("packs");
    assert_eq!(bytes, read(&folder).bytes());
}

#[test]
fn a_file_that_shrinks_or_grows_does_not_spoil_the_archive() {
    let folder = folder(&[("Dockerfile", ""), ("log", "12345"), ("z", "end")]);
    let context = read(&folder);
    fs::write(folder.path().join("log"), "12345678").expect("written");
    let entries = unpacked(&packed(&context));
    assert_eq!(
        entries.iter().map(|entry| entry.3.as_str()).collect::<Vec<_>>(),
        ["", "12345", "end"]
    );
    fs::write(folder.path().join("log"), "1").expect("written");
    let error = context.pack(Vec::new(), |_| ()).expect_err("too short");
    assert!(
        matches!(&error, ContextError::Changed(path) if path.ends_with("log")),
        "{error}"
    );
}

#[test]
fn what_is_missing_is_named() {
    let empty = folder(&[("a", "")]);
    let missing = |path: &Path, file: Option<&Path>| Context::read(path, file).expect_err("missing");
    assert!(matches!(missing(empty.path(), None), ContextError::NoDockerfile(_)));
    assert!(matches!(
        missing(&empty.path().join("nowhere"), None),
        ContextError::Read { .. }
    ));
    assert!(matches!(
        missing(&empty.path().join("a"), None),
        ContextError::NoFolder(_)
    ));
    let bad = folder(&[("Dockerfile", ""), (".dockerignore", "a\n[")]);
    assert!(missing(bad.path(), None).to_string().contains(".dockerignore: line 2"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_is_sent_is_what_the_ignore_file_leaves(
        text in "(!?[abc*]{1,2}(/[abc*]{1,2}){0,2}\n){0,4}",
        names in prop::collection::btree_set("[abc](/[abc]){0,2}", 1..10),
    ) {
        let Ok(ignore) = IgnoreFile::parse(&text) else { return Ok(()) };
        let folder = folder(&[("Dockerfile", ""), (".dockerignore", &text)]);
        let mut files = vec![".dockerignore".to_owned(), "Dockerfile".to_owned()];
        for name in names {
            let path = folder.path().join(&name);
            // A name may be another's folder.
            if fs::create_dir_all(path.parent().expect("a parent")).is_err() || path.exists() || fs::write(&path, "").is_err() {
                continue;
            }
            let mut inherited = Inherited::default();
            let mut excluded = false;
            for end in name.match_indices('/').map(|(end, _)| end).chain([name.len()]) {
                (excluded, inherited) = ignore.excludes(&name[..end], &inherited);
            }
            if !excluded {
                files.push(name);
            }
        }
        files.sort();
        let context = read(&folder);
        let mut sent: Vec<_> = paths(&context).into_iter().filter(|path| folder.path().join(path).is_file()).collect();
        sent.sort_unstable();
        prop_assert_eq!(sent, files);
    }
}
