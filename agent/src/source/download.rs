//! Fetching one file by HTTP, with the little patience that networks need: a transfer that breaks off goes on where it
//! was, as long as the server plays along.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    thread,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use kiln_agent::wire::report::ProblemKind;
use sha2::{Digest as _, Sha256};
use ureq::{
    Agent, Error,
    http::{Response, StatusCode, header},
};

use crate::{capture::sink::Sink, step::Failure};

/// Waits before each further try. A try that got further than the one before it begins them anew.
const BACKOFF: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// What to fetch.
#[derive(Clone, Debug)]
pub(super) struct Request<'a> {
    pub(super) url: &'a str,
    /// SHA-256 of the file in hexadecimal digits; told by the server when it isn't known.
    pub(super) digest: Option<&'a str>,
    /// Bearer token. With one, the server is Kiln's own.
    pub(super) token: Option<&'a str>,
    /// Largest file that is taken, in bytes.
    pub(super) limit: u64,
}

impl Request<'_> {
    fn ours(&self) -> bool {
        self.token.is_some()
    }

    fn problem(&self, what: &str) -> Failure {
        let field = if self.ours() { "source.id" } else { "source.url" };
        let from = if self.ours() {
            "the upload".to_owned()
        } else {
            self.shown().to_owned()
        };
        Failure::problem(ProblemKind::Source, format!("`{field}`: {from} {what}"))
    }

    /// The URL for messages: a query may be what opens it.
    fn shown(&self) -> &str {
        self.url.split('?').next().unwrap_or(self.url)
    }
}

/// Fetches into a file, which is left at its beginning.
pub(super) fn fetch(request: &Request<'_>, agent: &Agent, into: &mut File, sink: &Sink) -> Result<u64, Failure> {
    let mut transfer = Transfer {
        request,
        into,
        hash: Sha256::new(),
        bytes: 0,
        told: None,
    };
    let mut delays = BACKOFF.iter();
    loop {
        let before = transfer.bytes;
        let stop = match transfer.attempt(agent) {
            Ok(()) => break,
            Err(stop) => stop,
        };
        if transfer.bytes > before {
            delays = BACKOFF.iter();
        }
        match (stop, delays.next()) {
            (Stop::ForGood(failure), _) => return Err(failure),
            (Stop::MayPass(why), None) => return Err(request.problem(&why)),
            (Stop::MayPass(why), Some(delay)) => {
                sink.say(&format!("{why}: that may pass; trying again in {} s", delay.as_secs()));
                thread::sleep(*delay);
            }
        }
    }
    transfer.check()?;
    let bytes = transfer.bytes;
    into.rewind().map_err(|error| storing(&error))?;
    Ok(bytes)
}

/// Why a try ended early.
enum Stop {
    /// Another one would end in the same way.
    ForGood(Failure),
    /// In words that follow the file's name.
    MayPass(String),
}

struct Transfer<'a> {
    request: &'a Request<'a>,
    into: &'a mut File,
    hash: Sha256,
    bytes: u64,
    /// The digest that the server tells.
    told: Option<String>,
}

impl Transfer<'_> {
    fn attempt(&mut self, agent: &Agent) -> Result<(), Stop> {
        let mut get = agent.get(self.request.url).header(header::ACCEPT_ENCODING, "identity");
        if let Some(token) = self.request.token {
            get = get.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if self.bytes > 0 {
            get = get.header(header::RANGE, format!("bytes={}-", self.bytes));
        }
        let response = get.call().map_err(|error| self.unanswered(error))?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if self.continues(&response) => {}
            StatusCode::OK => self.begin()?,
            // The file isn't what it was, or the server doesn't keep its word about ranges.
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if self.bytes > 0 => {
                self.begin()?;
                return Err(Stop::MayPass("can't be had in parts".to_owned()));
            }
            status => return Err(self.refused(status)),
        }
        let length = content_length(&response);
        if length.is_some_and(|length| length.saturating_add(self.bytes) > self.request.limit) {
            return Err(Stop::ForGood(self.too_large()));
        }
        self.told = response
            .headers()
            .get("repr-digest")
            .and_then(|value| told_digest(value.to_str().ok()?));
        let expected = length.map(|length| length + self.bytes);
        self.receive(response.into_body().into_reader())?;
        match expected {
            Some(expected) if self.bytes < expected => Err(Stop::MayPass("breaks off".to_owned())),
            _ => Ok(()),
        }
    }

    fn begin(&mut self) -> Result<(), Stop> {
        self.hash = Sha256::new();
        self.bytes = 0;
        self.into
            .rewind()
            .and_then(|()| self.into.set_len(0))
            .map_err(|error| Stop::ForGood(storing(&error)))
    }

    fn continues<B>(&self, response: &Response<B>) -> bool {
        let range = response
            .headers()
            .get(header::CONTENT_RANGE)
            .and_then(|range| range.to_str().ok());
        let start = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
        self.bytes > 0 && start == Some(self.bytes)
    }

    fn receive(&mut self, mut body: impl Read) -> Result<(), Stop> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.unanswered(Error::from(error))),
            };
            self.bytes += read as u64;
            if self.bytes > self.request.limit {
                return Err(Stop::ForGood(self.too_large()));
            }
            self.hash.update(&buffer[..read]);
            self.into
                .write_all(&buffer[..read])
                .map_err(|error| Stop::ForGood(storing(&error)))?;
        }
    }

    fn too_large(&self) -> Failure {
        let limit = self.request.limit;
        self.request.problem(&format!(
            "is larger than {limit} bytes, which is what `resources.disk` leaves: ask for more, or leave out what the build doesn't need"
        ))
    }

    fn refused(&self, status: StatusCode) -> Stop {
        let for_good = |what: &str| Stop::ForGood(self.request.problem(what));
        if self.request.ours() && status == StatusCode::NOT_FOUND {
            return for_good("is not there any more: send the archive again and use its new `id`");
        }
        match status.as_u16() {
            404 | 410 => for_good(&format!("is not there (HTTP {status}): correct the URL")),
            401 | 403 => for_good(&format!(
                "is not given out to everybody (HTTP {status}): use a signed link, or upload the archive"
            )),
            408 | 425 | 429 | 500..=599 => Stop::MayPass(format!("is not given out (HTTP {status})")),
            _ => for_good(&format!("is not given out (HTTP {status})")),
        }
    }

    fn unanswered(&self, error: Error) -> Stop {
        let for_good = |what: &str| Stop::ForGood(self.request.problem(what));
        match error {
            Error::HostNotFound => Stop::MayPass("is on a host that nobody knows: correct the URL".to_owned()),
            Error::TooManyRedirects | Error::RedirectFailed => {
                for_good("leads through too many redirects: give the address that they lead to")
            }
            Error::Timeout(_) => Stop::MayPass("can't be had, because its server is silent for too long".to_owned()),
            Error::Rustls(error) => for_good(&format!("is on a server whose certificate can't be trusted: {error}")),
            Error::BadUri(_) | Error::Http(_) => for_good("has an address that can't be used: correct the URL"),
            Error::ConnectionFailed => Stop::MayPass(self.unreachable("no connection can be made")),
            Error::Io(error) => self.broken(&error),
            error => Stop::MayPass(format!("can't be had: {error}")),
        }
    }

    fn broken(&self, error: &io::Error) -> Stop {
        // TLS fails through the connection's reads and writes.
        let text = error.to_string();
        if error.kind() == io::ErrorKind::InvalidData && text.contains("certificate") {
            let what = format!("is on a server whose certificate can't be trusted: {text}");
            return Stop::ForGood(self.request.problem(&what));
        }
        let unreachable = [
            io::ErrorKind::ConnectionRefused,
            io::ErrorKind::HostUnreachable,
            io::ErrorKind::NetworkUnreachable,
        ];
        if unreachable.contains(&error.kind()) {
            return Stop::MayPass(self.unreachable(&text));
        }
        Stop::MayPass(format!("can't be had: {text}"))
    }

    fn unreachable(&self, said: &str) -> String {
        if self.request.ours() {
            return format!("can't be had, because the service doesn't answer: {said}");
        }
        format!("can't be had, because nothing answers there ({said}): check host and port, and that the server is up")
    }

    fn check(&self) -> Result<(), Failure> {
        let actual = hex(&self.hash.clone().finalize());
        let expected = self.request.digest.map(str::to_owned).or_else(|| self.told.clone());
        match expected {
            Some(expected) if expected == actual => Ok(()),
            Some(expected) => Err(self.request.problem(&format!(
                "has the SHA-256 {actual} and not {expected}: the file has changed, or the digest is another file's; correct `source.sha256` if this file is meant"
            ))),
            None => Err(Failure::internal("the service did not say what the upload's digest is")),
        }
    }
}

fn content_length<B>(response: &Response<B>) -> Option<u64> {
    response
        .headers()
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// The SHA-256 in `repr-digest: sha-256=:…:` (RFC 9530), in hexadecimal digits.
fn told_digest(value: &str) -> Option<String> {
    let digest = value.strip_prefix("sha-256=:")?.strip_suffix(':')?;
    Some(hex(&BASE64_STANDARD.decode(digest).ok()?))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn storing(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::StorageFull {
        let message = "there is no room for the source's archive: ask for more `resources.disk`";
        return Failure::problem(ProblemKind::Source, message);
    }
    Failure::internal(format!("the source's archive can't be kept: {error}"))
}
