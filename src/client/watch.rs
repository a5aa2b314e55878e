//! Attending a build from a terminal: its output and state until it is over, Ctrl-C included.

use chrono::{TimeDelta, Utc};
use serde_json::Value;

use super::{
    api::Api,
    error::{ClientError, Exit},
    follow::{Follower, News, What},
    interrupt::{Interrupts, Wish},
    screen::{BAD, FAINT, Output, Screen, UNSURE, style_of, styled},
    text::span,
    wire::{Build, Event},
};

/// How a build is attended.
pub(super) struct Watch<'a> {
    pub(super) api: &'a Api,
    pub(super) screen: &'a mut Screen,
    pub(super) id: String,
    pub(super) what: What,
    /// The event after which to begin.
    pub(super) after: i64,
    /// Whether the service has just been there.
    pub(super) known: bool,
    /// Whether each event is written to standard output as JSON, instead of the text.
    pub(super) events_as_json: bool,
    /// Where the text goes.
    pub(super) output: Output,
}

/// What became of it.
pub(super) enum Attended {
    /// It is over; the build as it is now.
    Over(Box<Build>, Value),
    /// It was left to itself.
    Detached,
}

impl Watch<'_> {
    /// Follows the build until it is over, or until the person at the terminal has had enough.
    pub(super) async fn attend(mut self, interrupts: &mut Interrupts) -> Result<Attended, ClientError> {
        let mut follower = Follower::start(self.api, self.id.clone(), self.what.clone(), self.after, self.known);
        self.screen.begin(self.output);
        let ended = self.follow(&mut follower, interrupts).await;
        self.screen.end()?;
        if ended? {
            let (build, document) = self.outcome().await?;
            return Ok(Attended::Over(Box::new(build), document));
        }
        let id = &self.id;
        self.screen.say(&format!(
            "kiln: detached; the build goes on. Follow it again with `kiln logs -f {id}`, stop it with `kiln cancel {id}`"
        ))?;
        Ok(Attended::Detached)
    }

    /// Whether the build was followed to its end.
    async fn follow(&mut self, follower: &mut Follower, interrupts: &mut Interrupts) -> Result<bool, ClientError> {
        let mut cancelling = false;
        loop {
            tokio::select! {
                biased;
                person = interrupts.next() => {
                    let wish = if person && self.screen.interactive && !cancelling {
                        self.screen.pause();
                        interrupts.ask(|text| self.screen.say(text)).await?
                    } else {
                        Wish::Detach
                    };
                    match wish {
                        Wish::Detach => return Ok(false),
                        Wish::Cancel => {
                            self.cancel().await?;
                            cancelling = true;
                        }
                        Wish::Follow => {}
                    }
                    self.screen.resume();
                }
                news = follower.next() => match news {
                    Some(News::Entry(entry)) => {
                        if self.events_as_json {
                            if !matches!(entry.event, Event::Other) {
                                self.screen.print(&format!("{}\n", entry.data))?;
                            }
                        } else {
                            self.screen.show(&entry)?;
                        }
                    }
                    Some(News::Lost) => self.screen.lost()?,
                    Some(News::Back) => self.screen.back()?,
                    Some(News::Failed(error)) => return Err(error),
                    None => return Ok(true),
                },
            }
        }
    }

    async fn cancel(&mut self) -> Result<(), ClientError> {
        let request = self.api.post(&["v1", "builds", &self.id, "cancel"]);
        match self.api.send(request).await {
            Ok(_) => self.screen.say(&styled(UNSURE, "kiln: cancelling")),
            // It was quicker; the end says how.
            Err(ClientError::Problem(problem)) if problem.code == "build_finished" => Ok(()),
            Err(error) => return Err(error),
        }?;
        Ok(())
    }

    /// The build after its end.
    async fn outcome(&self) -> Result<(Build, Value), ClientError> {
        wait_for_end(self.api, &self.id).await
    }
}

/// Waits until a build is over.
pub(super) async fn wait_for_end(api: &Api, id: &str) -> Result<(Build, Value), ClientError> {
    loop {
        let request = api.get(&["v1", "builds", id]).query(&[("wait", "30")]);
        let document: Value = api.json(request).await?;
        let build = read_build(api, &document)?;
        if build.ended().is_some() {
            return Ok((build, document));
        }
    }
}

/// The build in a document.
pub(super) fn read_build(api: &Api, document: &Value) -> Result<Build, ClientError> {
    serde::Deserialize::deserialize(document).map_err(|error| ClientError::NotKiln {
        url: api.url().clone(),
        what: format!("a build can't be read: {error}"),
    })
}

/// Says how a build ended, and gives the exit code for it.
pub(super) fn conclude(screen: &mut Screen, build: &Build) -> Result<Exit, ClientError> {
    let Some(state) = build.ended() else {
        return Ok(Exit::Failed);
    };
    let took = build.finished_at.unwrap_or_else(Utc::now) - build.created_at;
    let took = span(took.max(TimeDelta::zero()));
    let mut text = format!(
        "{} after {took}",
        styled(style_of(&build.state), &format!("kiln: {}", build.state))
    );
    if build.attempts.len() > 1 {
        text = format!("{text}, {} attempts", build.attempts.len());
    }
    if let Some(digest) = &build.digest {
        for image in &build.images {
            text = format!("{text}\n  {image}@{digest}");
        }
        if build.images.is_empty() {
            text = format!("{text}\n  {digest}");
        }
    }
    if let Some(failure) = &build.failure {
        text = format!("{text}\n  {}: {}", styled(BAD, &failure.code), failure.message);
    }
    text = format!("{text}\n  {}", styled(FAINT, &format!("kiln get {}", build.id)));
    screen.say(&text)?;
    Ok(Exit::of(state))
}
