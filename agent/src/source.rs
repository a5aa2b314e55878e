//! The source step: fills the source folder and checks that what the build needs is in it.

mod archive;
mod check;
mod download;
mod git;
mod inline;
pub(crate) mod template;

use std::{fs, io, sync::Arc};

use kiln_agent::wire::plan::{SourceKind, SourcePlan};
use nix::sys::stat::{Mode, umask};

use crate::{
    capture::sink::Sink,
    process::Supervisor,
    step::{Done, Failure},
};

/// Carries out the source step.
pub(crate) fn carry_out(plan: &SourcePlan, supervisor: &mut Supervisor, sink: &Arc<Sink>) -> Result<Done, Failure> {
    // In a pod the build container reads the folder as another user.
    umask(Mode::from_bits_truncate(0o022));
    prepare(plan)
        .map_err(|error| Failure::internal(format!("the folder {} can't be used: {error}", plan.into.display())))?;
    let commit = match &plan.from {
        SourceKind::Git {
            url,
            reference,
            commit,
            submodules,
            credentials,
        } => {
            let request = git::Request {
                url,
                reference: reference.as_deref(),
                commit: commit.as_deref(),
                submodules: *submodules,
                credentials: credentials.as_ref(),
            };
            Some(git::fetch(&request, &plan.into, supervisor, sink)?)
        }
        SourceKind::Inline { files } => {
            inline::write(files, &plan.into)?;
            let plural = if files.len() == 1 { "" } else { "s" };
            sink.say(&format!(
                "Wrote {} file{plural} that came with the request",
                files.len()
            ));
            None
        }
        SourceKind::Archive { url, sha256, limits } => {
            let request = download::Request {
                url,
                digest: Some(sha256),
                token: None,
                limit: limits.bytes,
            };
            archive::obtain(&request, limits, &plan.into, supervisor, sink)?;
            None
        }
        SourceKind::Upload { url, token, limits } => {
            let token = fs::read_to_string(token)
                .map_err(|error| Failure::internal(format!("the token for the upload can't be read: {error}")))?;
            let request = download::Request {
                url,
                digest: None,
                token: Some(token.trim()),
                limit: limits.bytes,
            };
            archive::obtain(&request, limits, &plan.into, supervisor, sink)?;
            None
        }
    };
    let dockerfile = check::check(plan)?;
    if let Some(variables) = &plan.template {
        template::render(&dockerfile, &plan.dockerfile, variables)?;
        sink.say(&format!("Rendered the template `{}`", plan.dockerfile));
    }
    Ok(Done { commit, digest: None })
}

/// Makes the folder. What it held before could be mistaken for the source.
fn prepare(plan: &SourcePlan) -> io::Result<()> {
    fs::create_dir_all(&plan.into)?;
    match fs::read_dir(&plan.into)?.next() {
        None => Ok(()),
        Some(_) => Err(io::Error::from(io::ErrorKind::DirectoryNotEmpty)),
    }
}
