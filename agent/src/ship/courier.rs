//! The requests to the service, and what its answers mean.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kiln_agent::wire::push::{
    LOG_OFFSET, OffsetProblem, PRINTED, Printed, PushAnswer, Seal, SpoolStep, push_url, seal_url,
};
use ureq::{
    Agent, Error,
    http::{Response, header},
};

use super::read_token;
use crate::http;

/// A shorter body isn't worth compressing.
const MIN_COMPRESSED: usize = 256;
/// Text of the same kind all along: the fastest level takes most of what there is to take.
const LEVEL: i32 = 1;
/// No answer is longer.
const MAX_ANSWER: u64 = 64 << 10;

/// What became of a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// The service has it.
    Taken(PushAnswer),
    /// The service has only what is below this offset.
    Behind(u64),
    /// The push was too long.
    TooLarge,
    /// The attempt is over, or not this one's: nothing more is wanted.
    Over(String),
    /// Later, or never.
    Busy {
        /// How long the service wants to be left alone.
        after: Option<Duration>,
        /// For people.
        why: String,
    },
}

/// Talks to the service.
pub(super) struct Courier {
    agent: Agent,
    base: String,
    token: PathBuf,
}

impl Courier {
    pub(super) fn new(base: &str, token: &Path) -> Self {
        Self {
            agent: http::to_service(),
            base: base.to_owned(),
            token: token.to_owned(),
        }
    }

    /// Sends frames from an offset on, or a sign of life.
    pub(super) fn push(&self, step: SpoolStep, offset: u64, frames: &[u8], printed: Printed) -> Answer {
        let url = push_url(&self.base, step, offset);
        let printed = printed.to_string();
        let compressed = (frames.len() >= MIN_COMPRESSED)
            .then(|| zstd::bulk::compress(frames, LEVEL).ok())
            .flatten();
        match compressed {
            Some(compressed) => self.post(
                &url,
                "application/octet-stream",
                &[(PRINTED, &printed), (header::CONTENT_ENCODING.as_str(), "zstd")],
                &compressed,
            ),
            None => self.post(&url, "application/octet-stream", &[(PRINTED, &printed)], frames),
        }
    }

    /// Seals a step's log.
    pub(super) fn seal(&self, step: SpoolStep, seal: &Seal) -> Answer {
        // Numbers can't fail to serialise.
        let body = serde_json::to_vec(seal).unwrap_or_default();
        self.post(&seal_url(&self.base, step), "application/json", &[], &body)
    }

    fn post(&self, url: &str, kind: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let token = match read_token(&self.token) {
            Ok(token) => token,
            Err(error) => return busy(format!("the token {} can't be read: {error}", self.token.display())),
        };
        let mut post = self
            .agent
            .post(url)
            .header(header::CONTENT_TYPE, kind)
            .header(header::AUTHORIZATION, format!("Bearer {token}"));
        for (name, value) in headers {
            post = post.header(*name, *value);
        }
        match post.send(body) {
            Ok(response) => read(response),
            Err(Error::HostNotFound) => busy(format!("the host of {} is not known", self.base)),
            Err(error) => busy(format!("{} can't be reached: {error}", self.base)),
        }
    }
}

fn busy(why: String) -> Answer {
    Answer::Busy { after: None, why }
}

fn read(response: Response<ureq::Body>) -> Answer {
    let status = response.status();
    let after = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    let text = match response.into_body().into_with_config().limit(MAX_ANSWER).read_to_vec() {
        Ok(text) => text,
        Err(error) => return busy(format!("the service's answer breaks off: {error}")),
    };
    let strange = || busy(format!("the service's answer (HTTP {status}) is not one of Kiln's"));
    match status.as_u16() {
        200 => serde_json::from_slice(&text).map_or_else(|_| strange(), Answer::Taken),
        409 => match serde_json::from_slice::<OffsetProblem>(&text) {
            Ok(problem) if problem.code == LOG_OFFSET => Answer::Behind(problem.offset),
            _ => strange(),
        },
        413 => Answer::TooLarge,
        401 | 404 | 410 => Answer::Over(format!("HTTP {status}")),
        _ => Answer::Busy {
            after,
            why: format!("the service answers HTTP {status}"),
        },
    }
}
