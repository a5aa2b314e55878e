//! Fetching a commit with `git`, with as little traffic as the server allows. Everything is an argument vector; the
//! repository's content and the host's configuration get no say in what git runs.

mod access;
mod command;
mod refusal;

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use kiln_agent::wire::{
    plan::SourceCredentials,
    report::{Exit, Problem, ProblemKind},
};
use nix::sys::signal::Signal;

use crate::{capture::sink::Sink, process::Supervisor, step::Failure};
use access::Access;
use command::Git;
use refusal::{Cause, Refusal};

/// How long to wait before each further try at what failed for a reason that may pass.
const BACKOFF: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];

/// How much history to ask for, one after the other, where a server doesn't give out a commit by its id.
const DEPTHS: [&str; 2] = ["--depth=50", FULL_DEPTH];

/// What git takes for all of the history.
const FULL_DEPTH: &str = "--depth=2147483647";

/// What to fetch.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) url: &'a str,
    pub(super) reference: Option<&'a str>,
    pub(super) commit: Option<&'a str>,
    pub(super) submodules: bool,
    pub(super) credentials: Option<&'a SourceCredentials>,
}

/// Checks the commit out into an empty folder and returns its full id.
pub(super) fn fetch(
    request: &Request<'_>,
    into: &Path,
    supervisor: &mut Supervisor,
    sink: &Arc<Sink>,
) -> Result<String, Failure> {
    validate(request)?;
    let mut checkout = Checkout {
        request,
        into,
        git: Git::new(into, Access::new(request.url, request.credentials)?, supervisor, sink),
    };
    checkout.carry_out()
}

/// The service has checked these; here they become arguments, so they are checked where it counts.
fn validate(request: &Request<'_>) -> Result<(), Failure> {
    let wrong = |what: &str| {
        Err(Failure::internal(format!(
            "the plan's {what} is not one that git may be given"
        )))
    };
    let plain = |text: &str| !text.bytes().any(|b| b.is_ascii_control() || b == b' ');
    let schemes = ["http://", "https://", "ssh://"];
    if !schemes.iter().any(|scheme| request.url.starts_with(scheme)) || !plain(request.url) {
        return wrong("repository URL");
    }
    let special = [':', '^', '~', '*', '?', '[', '\\'];
    if request
        .reference
        .is_some_and(|name| name.is_empty() || name.starts_with(['-', '+']) || name.contains(special) || !plain(name))
    {
        return wrong("ref");
    }
    if request
        .commit
        .is_some_and(|id| !matches!(id.len(), 40 | 64) || !id.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return wrong("commit");
    }
    Ok(())
}

fn remove_folder(folder: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::internal(format!(
            "{} can't be removed: {error}",
            folder.display()
        ))),
        _ => Ok(()),
    }
}

struct Checkout<'a> {
    request: &'a Request<'a>,
    into: &'a Path,
    git: Git<'a>,
}

impl Checkout<'_> {
    fn carry_out(&mut self) -> Result<String, Failure> {
        let Request {
            url, reference, commit, ..
        } = *self.request;
        self.git.say(&match (commit, reference) {
            (Some(commit), _) => format!("Fetching {url} at commit {commit}"),
            (None, Some(reference)) => format!("Fetching {url} at {reference}"),
            (None, None) => format!("Fetching {url} at its default branch"),
        });
        let long_ids = commit.is_some_and(|id| id.len() == 64);
        self.init(if long_ids { "sha256" } else { "sha1" })?;
        let fetched = match self.obtain()? {
            Err(refusal) if refusal.cause == Cause::ObjectFormat && !long_ids => {
                self.clear()?;
                self.init("sha256")?;
                self.obtain()?
            }
            other => other,
        };
        let wanted = fetched.map_err(|refusal| self.failure(&refusal))?;
        self.check_out(&wanted)?;
        if self.request.submodules {
            self.fetch_submodules()?;
        }
        self.describe()
    }

    fn init(&mut self, format: &str) -> Result<(), Failure> {
        let object_format = format!("--object-format={format}");
        let into = self.git.folder();
        self.local(&[
            "init",
            "--quiet",
            "--template=",
            "--initial-branch=main",
            &object_format,
            "--",
            &into,
        ])?;
        // Submodules with relative URLs are found from the remote's.
        self.local(&["remote", "add", "--", "origin", self.request.url])?;
        Ok(())
    }

    fn clear(&self) -> Result<(), Failure> {
        fs::remove_dir_all(self.into.join(".git"))
            .map_err(|error| Failure::internal(format!("the source folder can't be emptied: {error}")))
    }

    /// Fetches what is wanted and returns the name that it can be checked out by.
    fn obtain(&mut self) -> Result<Result<String, Refusal>, Failure> {
        match (self.request.commit, self.request.reference) {
            (Some(commit), reference) => self.obtain_commit(commit, reference),
            (None, Some(reference)) => self.obtain_reference(reference, "--depth=1"),
            (None, None) => self.try_fetch(&["--depth=1"], &["HEAD"]),
        }
    }

    fn obtain_commit(&mut self, commit: &str, reference: Option<&str>) -> Result<Result<String, Refusal>, Failure> {
        match self.try_fetch(&["--depth=1"], &[commit])? {
            Err(refusal) if matches!(refusal.cause, Cause::CommitNotOffered | Cause::UnknownRef) => {}
            other => return Ok(other),
        }
        self.git
            .say("The server does not give out commits by their id; looking for it in the history");
        if let Some(reference) = reference {
            for depth in DEPTHS {
                let fetched = self.obtain_reference(reference, depth)?;
                match fetched {
                    // The commit wins: a ref that is gone since is no reason to fail.
                    Err(refusal) if refusal.cause == Cause::UnknownRef => break,
                    Err(refusal) => return Ok(Err(refusal)),
                    Ok(_) if self.has(commit)? => return Ok(Ok(commit.to_owned())),
                    Ok(_) => {}
                }
            }
        }
        let everything = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"];
        Ok(match self.try_fetch(&[FULL_DEPTH], &everything)? {
            Err(refusal) => Err(refusal),
            Ok(_) if self.has(commit)? => Ok(commit.to_owned()),
            Ok(_) => Err(Refusal::missing_commit()),
        })
    }

    /// A short name is a branch, or else a tag; with a slash in it, it may also be the rest of a full name.
    fn obtain_reference(&mut self, reference: &str, depth: &str) -> Result<Result<String, Refusal>, Failure> {
        let mut names = Vec::new();
        if reference == "HEAD" || reference.starts_with("refs/") {
            names.push(reference.to_owned());
        } else {
            names.push(format!("refs/heads/{reference}"));
            names.push(format!("refs/tags/{reference}"));
            if reference.contains('/') {
                names.push(format!("refs/{reference}"));
            }
        }
        let mut first_refusal = None;
        for name in names {
            match self.try_fetch(&[depth], &[&name])? {
                Err(refusal) if refusal.cause == Cause::UnknownRef => {
                    first_refusal.get_or_insert(refusal);
                }
                other => return Ok(other),
            }
        }
        Ok(Err(first_refusal.unwrap_or_else(Refusal::missing_ref)))
    }

    fn try_fetch(&mut self, options: &[&str], refspecs: &[&str]) -> Result<Result<String, Refusal>, Failure> {
        let fixed = ["fetch", "--no-tags", "--no-auto-gc", "--no-recurse-submodules"];
        let args = [&fixed[..], options, &["--", "origin"], refspecs].concat();
        let fetched = self.persist(&args, Refusal::of_fetch)?;
        Ok(fetched.map(|()| "FETCH_HEAD".to_owned()))
    }

    /// Runs a command that talks to a server, again where the reason for its failure may pass.
    fn persist(&mut self, args: &[&str], judge: fn(&str) -> Refusal) -> Result<Result<(), Refusal>, Failure> {
        let mut delays = BACKOFF.iter();
        loop {
            let ran = self.git.run(args)?;
            if ran.succeeded() {
                return Ok(Ok(()));
            }
            let refusal = judge(&ran.stderr);
            let Some(&delay) = delays.next().filter(|_| refusal.cause.may_pass()) else {
                return Ok(Err(refusal));
            };
            self.git
                .say(&format!("That may pass; trying again in {} s", delay.as_secs()));
            self.git.pause(delay)?;
        }
    }

    fn has(&mut self, commit: &str) -> Result<bool, Failure> {
        let object = format!("{commit}^{{commit}}");
        Ok(self.git.ask(&["cat-file", "-e", &object])?.succeeded())
    }

    fn check_out(&mut self, wanted: &str) -> Result<(), Failure> {
        let commit = format!("{wanted}^{{commit}}");
        let found = self.git.ask(&["rev-parse", "--verify", "--quiet", &commit])?;
        if !found.succeeded() {
            let (field, name) = match (self.request.commit, self.request.reference) {
                (Some(commit), _) => ("source.commit", commit),
                (None, name) => ("source.ref", name.unwrap_or("HEAD")),
            };
            let message = format!("`{field}`: `{name}` exists but is not a commit: give a branch, a tag or a commit");
            return Err(Failure::problem(ProblemKind::Source, message));
        }
        let ran = self
            .git
            .run(&["checkout", "--quiet", "--detach", found.stdout.trim()])?;
        if ran.succeeded() {
            return Ok(());
        }
        Err(self.failure(&Refusal::of_fetch(&ran.stderr)))
    }

    fn fetch_submodules(&mut self) -> Result<(), Failure> {
        let args = ["submodule", "--quiet", "update", "--init", "--recursive", "--depth=1"];
        let mut fetched = self.persist(&args, Refusal::of_submodules)?;
        if fetched
            .as_ref()
            .is_err_and(|refusal| refusal.cause == Cause::CommitMissing)
        {
            // Servers that don't give out commits by their id have them in their history all the same.
            self.git
                .say("A submodule's commit is not given out by its id; looking for it in the history");
            self.local(&["submodule", "--quiet", "deinit", "--all", "--force"])?;
            remove_folder(&self.into.join(".git/modules"))?;
            fetched = self.persist(&args[..args.len() - 1], Refusal::of_submodules)?;
        }
        match fetched {
            Ok(()) => Ok(()),
            Err(refusal) => Err(self.failure_with(&refusal, refusal.submodule_message())),
        }
    }

    fn describe(&mut self) -> Result<String, Failure> {
        let head = self.local(&["log", "-1", "--no-show-signature", "--format=%H%n%s", "HEAD"])?;
        let (commit, subject) = head.split_once('\n').unwrap_or((&head, ""));
        self.git.say(&format!("Checked out {commit} {}", subject.trim()));
        Ok(commit.to_owned())
    }

    /// Runs a command that can fail for no reason of the user's, and returns its output.
    fn local(&mut self, args: &[&str]) -> Result<String, Failure> {
        let ran = self.git.ask(args)?;
        if ran.succeeded() {
            return Ok(ran.stdout);
        }
        let refusal = Refusal::of_fetch(&ran.stderr);
        Err(Failure::internal(format!("git {} failed: {}", args[0], refusal.line)))
    }

    fn failure(&self, refusal: &Refusal) -> Failure {
        self.failure_with(refusal, refusal.message(self.request))
    }

    /// A git that was killed, or whose helper was, has not said what is wrong: the signal has to tell.
    fn failure_with(&self, refusal: &Refusal, message: String) -> Failure {
        let kind = ProblemKind::Source;
        match self.git.last_exit() {
            Exit::Signal(signal) => Failure::Command(Exit::Signal(signal)),
            _ if refusal.cause == Cause::HelperKilled => Failure::Command(Exit::Signal(Signal::SIGKILL as i32)),
            exit => Failure::Problem(exit, Problem { kind, message }),
        }
    }
}
