//! A source that is an archive: fetched beside the source folder, checked, unpacked into it, and removed.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use kiln_agent::{
    archive::{self, Error, Limits},
    wire::report::ProblemKind,
};

use super::download::{self, Request};
use crate::{capture::sink::Sink, http, process::Supervisor, step::Failure};

/// How often it is looked whether the work is done. A signal to stop is heard in between.
const POLL: Duration = Duration::from_millis(10);

/// Fetches the archive and unpacks it into an empty folder.
pub(super) fn obtain(
    request: &Request<'_>,
    limits: &Limits,
    into: &Path,
    supervisor: &mut Supervisor,
    sink: &Arc<Sink>,
) -> Result<(), Failure> {
    let job = Job {
        url: request.url.to_owned(),
        digest: request.digest.map(str::to_owned),
        token: request.token.map(str::to_owned),
        limits: *limits,
        into: into.to_path_buf(),
        sink: Arc::clone(sink),
    };
    // Apart from the thread that hears signals. When the step is told to stop, the program's end takes it along.
    let worker = thread::spawn(move || job.carry_out());
    while !worker.is_finished() {
        supervisor.pause(POLL)?;
    }
    worker
        .join()
        .unwrap_or_else(|_| Err(Failure::internal("fetching the archive broke")))
}

struct Job {
    url: String,
    digest: Option<String>,
    token: Option<String>,
    limits: Limits,
    into: PathBuf,
    sink: Arc<Sink>,
}

impl Job {
    fn carry_out(&self) -> Result<(), Failure> {
        let request = Request {
            url: &self.url,
            digest: self.digest.as_deref(),
            token: self.token.as_deref(),
            limit: self.limits.bytes,
        };
        let ours = request.token.is_some();
        self.sink.say(&match self.url.split('?').next() {
            Some(url) if !ours => format!("Fetching {url}"),
            _ => "Fetching the upload".to_owned(),
        });
        let mut file = nameless(&self.into)
            .map_err(|error| Failure::internal(format!("the source's archive can't be kept: {error}")))?;
        let bytes = download::fetch(&request, &http::client(ours), &mut file, &self.sink)?;
        let summary = archive::unpack(&file, &self.into, &self.limits).map_err(|error| refused(ours, &error))?;
        self.sink.say(&format!(
            "Unpacked {} entries of {} bytes from an archive of {bytes} bytes",
            summary.entries, summary.unpacked_bytes
        ));
        Ok(())
    }
}

/// A file on the source folder's disk that is gone when it is closed.
fn nameless(into: &Path) -> io::Result<File> {
    let path = into.with_extension("archive");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

fn refused(ours: bool, error: &Error) -> Failure {
    let field = if ours { "source.id" } else { "source.url" };
    match error {
        Error::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => Failure::problem(
            ProblemKind::Source,
            "there is no room for what the archive holds: ask for more `resources.disk`",
        ),
        Error::Read(_) | Error::Write { .. } => Failure::internal(format!("the source's archive {error}")),
        error => Failure::problem(ProblemKind::Source, format!("`{field}`: the archive {error}")),
    }
}
