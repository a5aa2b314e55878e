use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::PathBuf,
    process::Command,
};

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::*;

const LIMITS: Limits = Limits {
    bytes: 1 << 20,
    unpacked_bytes: 1 << 20,
    entries: 1000,
};

/// An entry as an archive may hold it, sound or not.
#[derive(Clone, Debug)]
struct Entry {
    kind: u8,
    path: Vec<u8>,
    link: Vec<u8>,
    content: Vec<u8>,
}

fn entry(kind: u8, path: &str, link: &str) -> Entry {
    let content = if kind == b'0' {
        path.as_bytes().to_vec()
    } else {
        Vec::new()
    };
    Entry {
        kind,
        path: path.into(),
        link: link.into(),
        content,
    }
}

fn file(path: &str) -> Entry {
    entry(b'0', path, "")
}

/// Packs entries as they are: the usual ways of making archives would refuse or mend them.
fn pack(entries: &[Entry]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for entry in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::new(entry.kind));
        header.set_size(entry.content.len() as u64);
        header.set_mode(0o640);
        header.set_mtime(1_000_000_000);
        let old = header.as_old_mut();
        for (field, value, long) in [
            (&mut old.name, &entry.path, b'L'),
            (&mut old.linkname, &entry.link, b'K'),
        ] {
            if value.len() > field.len() {
                let mut extension = Header::new_gnu();
                extension.set_entry_type(EntryType::new(long));
                extension.set_size(value.len() as u64 + 1);
                extension.set_cksum();
                builder
                    .append(&extension, [value.as_slice(), b"\0"].concat().as_slice())
                    .unwrap();
            }
            let fits = value.len().min(field.len());
            field[..fits].copy_from_slice(&value[..fits]);
        }
        header.set_cksum();
        builder.append(&header, entry.content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Checks and unpacks; both have to agree.
fn unpacked(archive: &[u8]) -> Result<(TempDir, Summary), Error> {
    let folder = TempDir::new().unwrap();
    let into = folder.path().join("a/b/c/into");
    fs::create_dir_all(&into).unwrap();
    fs::write(folder.path().join("secret"), "untouched").unwrap();
    let checked = check(archive, &LIMITS);
    let outcome = unpack(archive, &into, &LIMITS);
    assert_eq!(
        checked.as_ref().map_err(ToString::to_string).copied_result(),
        outcome.as_ref().map_err(ToString::to_string).copied_result()
    );
    // Whatever was in it, nothing has changed around the folder, and nothing in it leads out.
    assert_eq!(fs::read_to_string(folder.path().join("secret")).unwrap(), "untouched");
    for (level, holds) in [("", 2), ("a", 1), ("a/b", 1), ("a/b/c", 1)] {
        assert_eq!(
            fs::read_dir(folder.path().join(level)).unwrap().count(),
            holds,
            "{level}"
        );
    }
    let summary = outcome?;
    assert_stays_inside(&into, &into.canonicalize().unwrap());
    Ok((folder, summary))
}

trait Copied<T, E> {
    fn copied_result(self) -> Result<T, E>;
}

impl<T: Copy, E> Copied<T, E> for Result<&T, E> {
    fn copied_result(self) -> Result<T, E> {
        self.copied()
    }
}

fn assert_stays_inside(folder: &Path, root: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_symlink() {
            // One that leads nowhere is followed by hand as far as it goes.
            let mut target = path.parent().unwrap().join(fs::read_link(&path).unwrap());
            loop {
                match target.canonicalize() {
                    Ok(real) => {
                        assert!(real.starts_with(root), "{} leads to {}", path.display(), real.display());
                        break;
                    }
                    Err(_) => assert!(target.pop()),
                }
            }
        } else if meta.is_dir() {
            assert_stays_inside(&path, root);
        } else {
            assert!(meta.is_file() && meta.nlink() == 1, "{}", path.display());
        }
    }
}

fn refusal(entries: &[Entry]) -> Refusal {
    match unpacked(&pack(entries)) {
        Err(Error::Entry { why, .. }) => why,
        other => panic!("{entries:?}: {other:?}"),
    }
}

#[test]
fn files_folders_and_links_that_stay_inside() {
    let entries = [
        entry(b'5', "./", ""),
        file("./Dockerfile"),
        file("src/deep/main.c"),
        entry(b'2', "src/current", "deep"),
        entry(b'2', "src/deep/up", "../../Dockerfile"),
        entry(b'2', "nowhere", "gone/away"),
        entry(b'5', "empty/", ""),
        file(&format!("long/{}/{}", "x".repeat(200), "y".repeat(200))),
        file("src/deep/main.c"),
    ];
    for archive in [pack(&entries), gzip(&pack(&entries))] {
        let (folder, summary) = unpacked(&archive).unwrap();
        let into = folder.path().join("a/b/c/into");
        assert_eq!(summary.entries, entries.len() as u64);
        assert_eq!(
            fs::read_to_string(into.join("src/current/main.c")).unwrap(),
            "src/deep/main.c"
        );
        assert_eq!(fs::read_to_string(into.join("src/deep/up")).unwrap(), "./Dockerfile");
        let meta = fs::metadata(into.join("Dockerfile")).unwrap();
        assert_eq!(
            (meta.permissions().mode() & 0o7777, meta.mtime()),
            (0o640, 1_000_000_000)
        );
        assert!(into.join("empty").is_dir());
    }
}

#[test]
fn what_lies_or_leads_outside_is_refused() {
    for path in ["/etc/passwd", "//x", "/"] {
        assert_eq!(refusal(&[file(path)]), Refusal::Absolute, "{path}");
    }
    for path in ["../x", "a/../../x", "a/..", "..", "./../x"] {
        assert_eq!(refusal(&[file(path)]), Refusal::Upwards, "{path}");
    }
    for target in [
        "/etc/passwd",
        "..",
        "../x",
        "a/../../x",
        "./.././x",
        "../../../../../../../secret",
    ] {
        assert_eq!(
            refusal(&[file("f"), entry(b'2', "l", target)]),
            Refusal::LinkLeadsOut,
            "{target}"
        );
    }
    // Each stays inside by itself.
    let together = [file("f"), entry(b'2', "x/s", ".."), entry(b'2', "x/y/t", "../s/../..")];
    assert_eq!(refusal(&together), Refusal::LinkLeadsOut);
    let together = [file("f"), entry(b'2', "x/y/t", "../s/../.."), entry(b'2', "x/s", "..")];
    assert_eq!(refusal(&together), Refusal::LinkLeadsOut);
    assert_eq!(
        refusal(&[file("f"), entry(b'2', "a", "b"), entry(b'2', "b", "a")]),
        Refusal::LinkCircle
    );
}

#[test]
fn nothing_goes_through_a_link() {
    for (link, path) in [("a", "a/x"), ("d/a", "d/a/b/x")] {
        assert_eq!(
            refusal(&[file("f"), entry(b'2', link, "f"), file(path)]),
            Refusal::BehindLink
        );
    }
    assert_eq!(refusal(&[file("a"), file("a/b")]), Refusal::InFile);
    assert_eq!(refusal(&[entry(b'2', "a", "b"), file("a")]), Refusal::Twice);
    assert_eq!(refusal(&[file("a/b"), entry(b'2', "a", "b")]), Refusal::Twice);
    assert_eq!(refusal(&[file("a/b"), file("a")]), Refusal::Twice);
}

#[test]
fn other_kinds_are_refused() {
    for (kind, why) in [
        (b'1', Refusal::HardLink),
        (b'3', Refusal::Device),
        (b'4', Refusal::Device),
        (b'6', Refusal::Device),
        (b'V', Refusal::Unknown),
        (b'M', Refusal::Unknown),
    ] {
        assert_eq!(
            refusal(&[file("f"), entry(kind, "x", "f")]),
            why,
            "{}",
            char::from(kind)
        );
    }
    assert_eq!(refusal(&[entry(b'2', "x", "")]), Refusal::Path);
    assert_eq!(refusal(&[file(&"x".repeat(256))]), Refusal::Path);
    assert_eq!(refusal(&[file("x/".repeat(201).trim_end_matches('/'))]), Refusal::Path);
}

#[test]
fn what_is_no_archive_is_named() {
    for (bytes, words) in [
        (b"".as_slice(), "holds no file"),
        (b"PK\x03\x04rest", "it is a zip file"),
        (b"\xfd7zXZ\0rest", "compressed by xz"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"--boundary\r\nContent-Disposition: form-data", "the body itself"),
        (b"hello", "is not a tar archive"),
        (&[b'x'; 2000], "is not a tar archive"),
        (&[0; 1024], "holds no file"),
        (b"\x1f\x8brest", "is not a tar archive"),
    ] {
        let message = unpacked(bytes).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
    let only_folders = pack(&[entry(b'5', "a/", "")]);
    assert!(matches!(unpacked(&only_folders), Err(Error::Empty)));
}

#[test]
fn what_is_cut_off_is_noticed() {
    let mut big = file("big");
    big.content = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let plain = pack(&[file("a"), big]);
    let compressed = gzip(&plain);
    for cut in [700, 1024 + 512 + 1, plain.len() / 2] {
        assert!(
            matches!(unpacked(&plain[..cut]), Err(Error::Truncated | Error::Damaged(_))),
            "{cut}"
        );
    }
    for cut in [
        4,
        11,
        40,
        compressed.len() / 2,
        compressed.len() - 1,
        compressed.len() - 8,
    ] {
        assert!(matches!(unpacked(&compressed[..cut]), Err(Error::Truncated)), "{cut}");
    }
    let mut damaged = compressed.clone();
    let at = damaged.len() - 6;
    damaged[at] ^= 1;
    assert!(unpacked(&damaged).is_err(), "the checksum is looked at");
}

#[test]
fn limits_hold_whatever_the_headers_say() {
    let limits = Limits {
        bytes: 0,
        unpacked_bytes: 4,
        entries: 2,
    };
    let files = |names: &[&str]| pack(&names.iter().map(|name| file(name)).collect::<Vec<_>>());
    assert_eq!(
        check(files(&["ab", "cd"]).as_slice(), &limits).unwrap().unpacked_bytes,
        4
    );
    assert!(matches!(
        check(files(&["a", "b", "c"]).as_slice(), &limits),
        Err(Error::TooManyEntries(2))
    ));
    assert!(matches!(
        check(files(&["abc", "de"]).as_slice(), &limits),
        Err(Error::TooLarge(4))
    ));
    // A terabyte that comes as a gigabyte or less: of zeros behind the end, of a name, of a folder.
    let mut bomb = Header::new_gnu();
    bomb.set_size(1 << 40);
    for (kind, path) in [(b'L', "x"), (b'x', "x"), (b'5', "x"), (b'0', "x")] {
        bomb.set_entry_type(EntryType::new(kind));
        bomb.set_path(path).unwrap();
        bomb.set_cksum();
        let archive = [&files(&["a"])[..1024], bomb.as_bytes()].concat();
        let endless = archive.chain(io::repeat(0));
        let refused = check(endless, &limits);
        assert!(
            matches!(refused, Err(Error::TooLarge(_) | Error::TooIntricate)),
            "{refused:?}"
        );
    }
    let archive = files(&["a"]);
    let endless = archive.chain(io::repeat(0)).take(1 << 40);
    assert!(matches!(check(endless, &limits), Err(Error::TooLarge(4))));
}

#[test]
fn what_gnu_tar_packs_comes_out_the_same() {
    let from = TempDir::new().unwrap();
    let path = |name: &str| from.path().join(name);
    fs::create_dir_all(path("a/été")).unwrap();
    for (name, content) in [
        ("Dockerfile", "FROM scratch\n"),
        ("a/été/ü 'x'", ""),
        ("a/.hidden", "h"),
    ] {
        fs::write(path(name), content).unwrap();
    }
    fs::write(path("a/big"), vec![7; 100_000]).unwrap();
    fs::set_permissions(path("a/big"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("a/big", path("link")).unwrap();
    let long = ["n".repeat(150), "l".repeat(150)];
    fs::write(path(&long[0]), "long").unwrap();
    symlink(&long[0], path(&long[1])).unwrap();
    let archives = TempDir::new().unwrap();
    for format in ["gnu", "oldgnu", "pax", "ustar", "v7"] {
        if format == "ustar" {
            // It can't hold such names.
            for name in &long {
                fs::remove_file(path(name)).unwrap();
            }
        }
        for compress in ["--no-auto-compress", "--gzip"] {
            let archive = archives.path().join("tar");
            let mut tar = Command::new("tar");
            tar.arg("-C").arg(from.path()).arg("--format").arg(format).arg(compress);
            assert!(tar.arg("-cf").arg(&archive).arg(".").status().unwrap().success());
            let (folder, _) =
                unpacked(&fs::read(&archive).unwrap()).unwrap_or_else(|error| panic!("{format}: {error}"));
            assert_eq!(
                listed(from.path()),
                listed(&folder.path().join("a/b/c/into")),
                "{format}"
            );
        }
    }
}

#[test]
fn sparse_files_are_refused() {
    let from = TempDir::new().unwrap();
    let hole = fs::File::create(from.path().join("hole")).unwrap();
    hole.set_len(1 << 20).unwrap();
    for format in ["gnu", "pax"] {
        let mut tar = Command::new("tar");
        tar.arg("-C")
            .arg(from.path())
            .args(["--sparse", "--format", format, "-cf", "-", "hole"]);
        let archive = tar.output().unwrap().stdout;
        let outcome = unpacked(&archive).map(|(_, summary)| summary);
        assert!(
            matches!(
                outcome,
                Err(Error::Entry {
                    why: Refusal::Sparse,
                    ..
                })
            ),
            "{format}: {outcome:?}"
        );
    }
}

/// Everything in a folder: path, mode, content or target.
fn listed(top: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![top.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else if meta.is_dir() {
                folders.push(path.clone());
                Vec::new()
            } else {
                fs::read(&path).unwrap()
            };
            let mode = if meta.is_symlink() {
                0
            } else {
                meta.permissions().mode() & 0o777
            };
            found.insert(path.strip_prefix(top).unwrap().to_owned(), (mode, content));
        }
    }
    found
}

fn any_path() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        6 => "[ab]".prop_map(String::into_bytes),
        2 => Just(b"..".to_vec()),
        1 => Just(b".".to_vec()),
        1 => Just(Vec::new()),
        1 => Just(b"secret".to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..3),
    ];
    proptest::collection::vec(name, 0..5).prop_map(|names| names.join(&b'/'))
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![
        5 => Just(b'0'), 4 => Just(b'5'), 6 => Just(b'2'), 1 => Just(b'1'),
        1 => proptest::sample::select(b"34567xgLKSVMD\0".to_vec()),
    ];
    (kind, any_path(), any_path()).prop_map(|(kind, path, link)| Entry {
        kind,
        path,
        link,
        content: if kind == b'0' { b"content".to_vec() } else { Vec::new() },
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_archive_reaches_outside(entries in proptest::collection::vec(any_entry(), 0..8)) {
        // The assertions are in there.
        drop(unpacked(&pack(&entries)));
    }

    #[test]
    fn links_alone_do_not_lead_out(links in proptest::collection::vec(("[ab](/[ab]){0,2}", "(\\.\\.|[ab]|s)(/(\\.\\.|[ab]|s)){0,4}"), 1..7)) {
        let mut entries: Vec<Entry> = links.iter().map(|(path, target)| entry(b'2', path, target)).collect();
        entries.push(file("f"));
        drop(unpacked(&pack(&entries)));
    }

    #[test]
    fn no_bytes_are_too_strange(
        entries in proptest::collection::vec(any_entry(), 0..4),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        compressed: bool,
    ) {
        let mut bytes = pack(&entries);
        if compressed {
            bytes = gzip(&bytes);
        }
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() * 2 + 1));
        drop(unpacked(&bytes));
    }
}
