//! A folder as build context: what of it is sent, and the archive in which it travels.
//!
//! The archive is a function of the folder: entries are sorted, owners are dropped, and times are kept to the second,
//! because a Dockerfile's `make` may look at them. Symbolic links stay links; nothing outside of the folder is read.

use std::{
    ffi::OsStr,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use flate2::{Compression, GzBuilder};
use nix::fcntl::OFlag;
use tar::{EntryType, Header};

use super::ignore::{IgnoreFile, Inherited, InvalidPattern};

/// A folder that is to be sent.
#[derive(Debug)]
pub struct Context {
    root: PathBuf,
    entries: Vec<Entry>,
    /// A Dockerfile from outside of the folder, which goes beside it.
    outside: Option<PathBuf>,
    /// The Dockerfile, as the request is to name it.
    pub dockerfile: String,
    /// The context's folder within the archive.
    pub subdir: &'static str,
    /// What is left out because no archive for a build can hold it: sockets, devices, pipes.
    pub left_out: Vec<PathBuf>,
}

#[derive(Debug)]
struct Entry {
    /// Relative to the folder.
    path: PathBuf,
    metadata: Metadata,
}

/// Why a folder can't be sent.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// Something can't be read.
    #[error("can't read {}: {source}", .path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder is something else.
    #[error("{} is not a folder: name the folder that holds the Dockerfile, or a git URL", .0.display())]
    NoFolder(PathBuf),
    /// There is no Dockerfile.
    #[error("there is no Dockerfile at {}: name it with --file", .0.display())]
    NoDockerfile(PathBuf),
    /// A name that can't stand in a request.
    #[error("the name of {} is not UTF-8", .0.display())]
    Name(PathBuf),
    /// A line of the ignore file is no pattern.
    #[error("{}: {source}", .path.display())]
    Ignore {
        /// The ignore file.
        path: PathBuf,
        /// What is wrong with it.
        source: InvalidPattern,
    },
    /// A file shrank.
    #[error("{} became shorter while it was read: build again once it is complete", .0.display())]
    Changed(PathBuf),
    /// The archive's reader is gone.
    #[error(transparent)]
    Write(io::Error),
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> ContextError {
    let path = path.to_owned();
    |source| ContextError::Read { path, source }
}

/// The context's folder in an archive that has the Dockerfile beside it.
const BESIDE: &str = "context";
/// Name of a Dockerfile from outside of the context.
const OUTSIDE: &str = "Dockerfile";

impl Context {
    /// Looks at a folder. `dockerfile` is a path as the caller gave it, relative to the working folder as with
    /// `docker build --file`; `Dockerfile` in the context when absent.
    pub fn read(folder: &Path, dockerfile: Option<&Path>) -> Result<Self, ContextError> {
        let root = folder.canonicalize().map_err(read_error(folder))?;
        if !root.is_dir() {
            return Err(ContextError::NoFolder(folder.to_owned()));
        }
        let named = dockerfile.map_or_else(|| folder.join("Dockerfile"), Path::to_owned);
        if !named.is_file() {
            return Err(ContextError::NoDockerfile(named));
        }
        // The file's folder, not the file itself: a link to a Dockerfile elsewhere is one of the context's files.
        let (parent, name) = match (named.parent(), named.file_name()) {
            (Some(parent), Some(name)) if parent.as_os_str().is_empty() => (Path::new("."), name),
            (Some(parent), Some(name)) => (parent, name),
            _ => return Err(ContextError::NoDockerfile(named)),
        };
        let located = parent.canonicalize().map_err(read_error(parent))?.join(name);
        let inside = located.strip_prefix(&root).ok().map(Path::to_owned);
        let (ignore, ignore_path) = ignore_file(&root, &located)?;
        let mut always = vec![PathBuf::from(".dockerignore")];
        if let Some(inside) = &inside {
            always.push(inside.clone());
            always.extend(ignore_path.strip_prefix(&root).ok().map(Path::to_owned));
        }
        let mut walk = Walk {
            root: &root,
            ignore: &ignore,
            always: &always,
            entries: Vec::new(),
            left_out: Vec::new(),
        };
        walk.folder(Path::new(""), &Inherited::default(), &mut Vec::new())?;
        let Walk { entries, left_out, .. } = walk;
        let (dockerfile, subdir, outside) = match inside {
            Some(path) => {
                let text = path.to_str().ok_or_else(|| ContextError::Name(named.clone()))?;
                (text.to_owned(), "", None)
            }
            None => (format!("/{OUTSIDE}"), BESIDE, Some(located)),
        };
        Ok(Self {
            root,
            entries,
            outside,
            dockerfile,
            subdir,
            left_out,
        })
    }

    /// How many files and links are sent.
    pub fn files(&self) -> usize {
        self.entries.iter().filter(|entry| !entry.metadata.is_dir()).count() + usize::from(self.outside.is_some())
    }

    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        let files = self.entries.iter().filter(|entry| entry.metadata.is_file());
        files.map(|entry| entry.metadata.len()).sum()
    }

    /// Paths of all entries, in the archive's order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.entries.iter().map(|entry| entry.path.as_path())
    }

    /// Writes the archive, a gzipped tar, and tells how many bytes of the folder are in it so far.
    pub fn pack<W: Write>(&self, out: W, mut packed: impl FnMut(u64)) -> Result<W, ContextError> {
        // Without a name and a time in it, the same content gives the same bytes.
        let gzip = GzBuilder::new().write(out, Compression::fast());
        let mut archive = tar::Builder::new(gzip);
        if let Some(path) = &self.outside {
            let metadata = fs::metadata(path).map_err(read_error(path))?;
            append_file(&mut archive, path, Path::new(OUTSIDE), &metadata, &mut packed)?;
        }
        for entry in &self.entries {
            let source = self.root.join(&entry.path);
            let name = Path::new(self.subdir).join(&entry.path);
            let metadata = &entry.metadata;
            if metadata.is_file() {
                append_file(&mut archive, &source, &name, metadata, &mut packed)?;
                continue;
            }
            let mut header = header(metadata);
            if metadata.is_dir() {
                header.set_entry_type(EntryType::Directory);
                archive.append_data(&mut header, &name, io::empty())
            } else {
                header.set_entry_type(EntryType::Symlink);
                let target = fs::read_link(&source).map_err(read_error(&source))?;
                archive.append_link(&mut header, &name, &target)
            }
            .map_err(ContextError::Write)?;
        }
        let gzip = archive.into_inner().map_err(ContextError::Write)?;
        gzip.finish().map_err(ContextError::Write)
    }
}

/// The ignore file that holds for a Dockerfile: its own (`x.Dockerfile.dockerignore`), else the context's.
fn ignore_file(root: &Path, dockerfile: &Path) -> Result<(IgnoreFile, PathBuf), ContextError> {
    let mut own = dockerfile.as_os_str().to_owned();
    own.push(".dockerignore");
    for path in [PathBuf::from(own), root.join(".dockerignore")] {
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(read_error(&path)(error)),
        };
        let ignore = IgnoreFile::parse(&text).map_err(|source| ContextError::Ignore {
            path: path.clone(),
            source,
        })?;
        return Ok((ignore, path));
    }
    Ok((IgnoreFile::default(), root.join(".dockerignore")))
}

struct Walk<'a> {
    root: &'a Path,
    ignore: &'a IgnoreFile,
    /// Sent whatever the ignore file says: the builder reads them.
    always: &'a [PathBuf],
    entries: Vec<Entry>,
    left_out: Vec<PathBuf>,
}

impl Walk<'_> {
    /// Collects a folder's content. `pending` are the folders above that are left out themselves, and are sent only when
    /// something in them is.
    fn folder(&mut self, folder: &Path, inherited: &Inherited, pending: &mut Vec<Entry>) -> Result<(), ContextError> {
        let full = self.root.join(folder);
        let listed = fs::read_dir(&full).and_then(|entries| {
            let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
            names.collect::<io::Result<Vec<_>>>()
        });
        let mut names = listed.map_err(read_error(&full))?;
        names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        for name in names {
            self.entry(folder.join(name), inherited, pending)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: PathBuf, inherited: &Inherited, pending: &mut Vec<Entry>) -> Result<(), ContextError> {
        let full = self.root.join(&path);
        let metadata = fs::symlink_metadata(&full).map_err(read_error(&full))?;
        let text = path.to_string_lossy();
        let (excluded, inherited) = self.ignore.excludes(&text, inherited);
        if metadata.is_dir() {
            let needed = self.always.iter().any(|always| always.starts_with(&path));
            if excluded && !needed && !self.ignore.may_keep_below(&text) {
                return Ok(());
            }
            let entry = Entry {
                path: path.clone(),
                metadata,
            };
            if excluded {
                let depth = pending.len();
                pending.push(entry);
                self.folder(&path, &inherited, pending)?;
                pending.truncate(depth);
            } else {
                self.keep(entry, pending);
                self.folder(&path, &inherited, pending)?;
            }
            return Ok(());
        }
        if excluded && !self.always.contains(&path) {
            return Ok(());
        }
        let kind = metadata.file_type();
        if kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device() {
            self.left_out.push(path);
            return Ok(());
        }
        self.keep(Entry { path, metadata }, pending);
        Ok(())
    }

    fn keep(&mut self, entry: Entry, pending: &mut Vec<Entry>) {
        self.entries.append(pending);
        self.entries.push(entry);
    }
}

fn header(metadata: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(metadata.mode() & 0o7777);
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

fn append_file<W: Write>(
    archive: &mut tar::Builder<W>,
    source: &Path,
    name: &Path,
    metadata: &Metadata,
    packed: &mut impl FnMut(u64),
) -> Result<(), ContextError> {
    // A file that became a link in the meantime isn't followed, unless it was named as the Dockerfile.
    let follow = name.as_os_str() == OsStr::new(OUTSIDE);
    let flags = if follow { OFlag::empty() } else { OFlag::O_NOFOLLOW };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((flags | OFlag::O_NONBLOCK).bits())
        .open(source)
        .map_err(read_error(source))?;
    let mut header = header(metadata);
    header.set_entry_type(EntryType::Regular);
    header.set_size(metadata.len());
    let mut content = Content {
        file,
        left: metadata.len(),
        failed: None,
        packed,
    };
    let written = archive.append_data(&mut header, name, &mut content);
    match (content.failed, written) {
        (Some(error), _) => Err(ContextError::Read {
            path: source.to_owned(),
            source: error,
        }),
        (None, Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(ContextError::Changed(source.to_owned()))
        }
        (None, written) => written.map_err(ContextError::Write),
    }
}

/// A file's first bytes, as many as its header promises.
struct Content<'a, F> {
    file: File,
    left: u64,
    /// Why it can't be read; kept apart from why the archive can't be written.
    failed: Option<io::Error>,
    packed: &'a mut F,
}

impl<F: FnMut(u64)> Read for Content<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        match self.file.read(&mut buffer[..wanted]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                self.left -= read as u64;
                (self.packed)(read as u64);
                Ok(read)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                self.failed = Some(error);
                Err(kind.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::UnixListener,
    };

    use flate2::read::GzDecoder;
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

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
        let context =
            Context::read(folder.path(), Some(&folder.path().join("docker/app.Dockerfile"))).expect("readable");
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
        let context =
            Context::read(context_folder.path(), Some(&elsewhere.path().join("x.Dockerfile"))).expect("readable");
        assert_eq!(
            (context.dockerfile.as_str(), context.subdir),
            ("/Dockerfile", "context")
        );
        let names: Vec<_> = unpacked(&packed(&context)).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names, ["Dockerfile", "context/a"]);
    }

    #[test]
    fn links_stay_links_and_lead_nowhere() {
        let folder = folder(&[("Dockerfile", ""), ("run.sh", "#!/bin/sh\n")]);
        fs::set_permissions(folder.path().join("run.sh"), fs::Permissions::from_mode(0o755)).expect("set");
        symlink("/etc", folder.path().join("etc")).expect("linked");
        symlink("nowhere", folder.path().join("broken")).expect("linked");
        let _socket = UnixListener::bind(folder.path().join("socket")).expect("bound");
        let context = read(&folder);
        assert_eq!(context.left_out, [Path::new("socket")]);
        let entries = unpacked(&packed(&context));
        let entry = |name: &str| entries.iter().find(|entry| entry.0 == name).expect(name);
        assert_eq!((entry("etc").1, entry("etc").3.as_str()), (EntryType::Symlink, "/etc"));
        assert_eq!(
            (entry("broken").1, entry("broken").3.as_str()),
            (EntryType::Symlink, "nowhere")
        );
        assert_eq!((entry("run.sh").2, entry("run.sh").3.as_str()), (0o755, "#!/bin/sh\n"));
        assert_eq!(entries.len(), 4);
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
}
