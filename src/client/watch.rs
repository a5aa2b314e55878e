//! Attending a build from a terminal: its output and state until it is over, Ctrl-C included.

use std::future::pending;

use chrono::{TimeDelta, Utc};
use serde_json::value::RawValue;
use tokio::{
    sync::oneshot,
    time::{Instant, MissedTickBehavior, sleep},
};

use super::{
    api::Api,
    cancel::{Canceller, Told},
    error::{ClientError, Exit},
    follow::{FIRST_PAUSE, Follower, LONGEST_PAUSE, News, PATIENCE, What},
    interrupt::Interrupts,
    keyboard::{Keyboard, QUESTION, Wish},
    live::TICK,
    reasons::Reasons,
    screen::{BAD, FAINT, Output, Screen, UNSURE, style_of, styled},
    text::span,
    wire::{Build, Event, Queue},
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
    Over(Box<Build>, Box<RawValue>),
    /// It was left to itself, or the person didn't wait to hear how it ended.
    Detached,
}

/// How following came to its end.
enum Followed {
    /// The build is over.
    ToTheEnd,
    /// The person has had enough. `unheard` when the service doesn't know yet that the build was to be cancelled.
    Left { unheard: bool },
}

/// What was asked of the person at the terminal, and of the service on their behalf.
#[derive(Default)]
struct Asked {
    /// Their keyboard, as long as it is needed.
    keyboard: Option<Keyboard>,
    /// The answer to the question, while it stands.
    answer: Option<oneshot::Receiver<Wish>>,
    /// The request to cancel, while it is under way.
    canceller: Option<Canceller>,
    /// Whether the build is being cancelled.
    cancelling: bool,
}

impl Asked {
    fn left(&self) -> Followed {
        Followed::Left {
            unheard: self.canceller.is_some(),
        }
    }
}

/// The answer, if there is a question.
async fn answered(answer: &mut Option<oneshot::Receiver<Wish>>) -> Wish {
    match answer {
        // Where nobody can be asked, the build goes on.
        Some(answer) => answer.await.unwrap_or(Wish::Detach),
        None => pending().await,
    }
}

/// What came of the request to cancel, if there is one.
async fn told(canceller: &mut Option<Canceller>) -> Option<Told> {
    match canceller {
        Some(canceller) => canceller.next().await,
        None => pending().await,
    }
}

/// What the build waits for, as long as that can be asked.
async fn waiting(reasons: &mut Option<Reasons>) -> Option<Queue> {
    match reasons {
        Some(reasons) => reasons.next().await,
        None => pending().await,
    }
}

impl Watch<'_> {
    /// Follows the build until it is over, or until the person at the terminal has had enough.
    pub(super) async fn attend(mut self, interrupts: &mut Interrupts) -> Result<Attended, ClientError> {
        let mut follower = Follower::start(self.api, self.id.clone(), self.what.clone(), self.after, self.known);
        // Before anything is shown that somebody might type into.
        let keyboard = self.screen.interactive.then(Keyboard::quiet).flatten();
        self.screen.begin(self.output)?;
        let end = self.follow(&mut follower, interrupts, keyboard).await;
        self.screen.end()?;
        let id = &self.id;
        match end? {
            Followed::ToTheEnd => {
                let outcome = wait_for_end(self.api, self.screen, id, true);
                tokio::select! {
                    outcome = outcome => {
                        let (build, document) = outcome?;
                        return Ok(Attended::Over(Box::new(build), document));
                    }
                    _ = interrupts.next() => {}
                }
                self.screen.say(&format!(
                    "kiln: the build is over, but the service is away; `kiln get {id}` shows how it ended"
                ))?;
            }
            Followed::Left { unheard: false } => self.screen.say(&format!(
                "kiln: detached; the build goes on. Follow it again with `kiln logs -f {id}`, stop it with `kiln cancel {id}`"
            ))?,
            Followed::Left { unheard: true } => self.screen.say(&format!(
                "kiln: detached; the service could not be told to cancel the build, which goes on. Stop it with `kiln cancel {id}`"
            ))?,
        }
        Ok(Attended::Detached)
    }

    async fn follow(
        &mut self,
        follower: &mut Follower,
        interrupts: &mut Interrupts,
        keyboard: Option<Keyboard>,
    ) -> Result<Followed, ClientError> {
        let mut asked = Asked {
            keyboard,
            ..Asked::default()
        };
        let mut reasons = Some(Reasons::start(self.api, &self.id));
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                person = interrupts.next() => {
                    if !self.question(&mut asked, person)? {
                        return Ok(asked.left());
                    }
                }
                wish = answered(&mut asked.answer) => {
                    asked.answer = None;
                    if let Some(keyboard) = &asked.keyboard {
                        keyboard.answered();
                    }
                    self.screen.ask(None)?;
                    match wish {
                        Wish::Detach => return Ok(asked.left()),
                        Wish::Cancel => asked.canceller = Some(Canceller::start(self.api, &self.id)),
                        Wish::Follow => {}
                    }
                }
                told = told(&mut asked.canceller) => self.told(&mut asked, told)?,
                news = follower.next() => match news {
                    Some(News::Entry(entry)) => {
                        if let Some(reasons) = &reasons {
                            reasons.heard();
                        }
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
                    None => return Ok(Followed::ToTheEnd),
                },
                queue = waiting(&mut reasons) => match queue {
                    Some(queue) if !self.events_as_json => self.screen.waits(&queue)?,
                    Some(_) => {}
                    None => reasons = None,
                },
                _ = ticks.tick() => self.screen.tick()?,
            }
        }
    }

    /// Asks what Ctrl-C is to mean. `false` when it can't be asked, or was already: then it means to detach.
    fn question(&mut self, asked: &mut Asked, person: bool) -> Result<bool, ClientError> {
        let decided = asked.answer.is_some() || asked.canceller.is_some() || asked.cancelling;
        if !person || !self.screen.interactive || decided {
            return Ok(false);
        }
        // One that began in the background may have come to the front.
        if asked.keyboard.is_none() {
            asked.keyboard = Keyboard::quiet();
        }
        let Some(keyboard) = &asked.keyboard else {
            return Ok(false);
        };
        asked.answer = Some(keyboard.ask());
        self.screen.ask(Some(QUESTION))?;
        Ok(true)
    }

    fn told(&mut self, asked: &mut Asked, told: Option<Told>) -> Result<(), ClientError> {
        if !matches!(told, Some(Told::Away)) {
            asked.canceller = None;
        }
        match told {
            Some(Told::Away) => {
                let text = "kiln: the service doesn't answer; it is asked again to cancel the build";
                self.screen.say(&styled(UNSURE, text))?;
            }
            Some(Told::Accepted) => {
                asked.cancelling = true;
                self.screen.say(&styled(UNSURE, "kiln: cancelling"))?;
            }
            Some(Told::Refused(error)) => {
                self.screen
                    .say(&format!("kiln: the build can't be cancelled: {error}"))?;
            }
            Some(Told::GivenUp(source)) => {
                return Err(ClientError::NotCancelled {
                    id: self.id.clone(),
                    source: Box::new(source),
                });
            }
            None => {}
        }
        Ok(())
    }
}

/// Waits until a build is over. `known` says that the service was just there and is worth waiting for from the beginning;
/// without, the first answer has to come.
pub(super) async fn wait_for_end(
    api: &Api,
    screen: &mut Screen,
    id: &str,
    mut known: bool,
) -> Result<(Build, Box<RawValue>), ClientError> {
    let mut away: Option<Instant> = None;
    let mut pause = FIRST_PAUSE;
    loop {
        let request = api.get(&["v1", "builds", id]).query(&[("wait", "30")]);
        let error = match api.json::<Box<RawValue>>(request).await {
            Ok(document) => {
                if away.take().is_some() {
                    screen.back()?;
                }
                (known, pause) = (true, FIRST_PAUSE);
                let build = read_build(api, &document)?;
                if build.ended().is_some() {
                    return Ok((build, document));
                }
                continue;
            }
            Err(error) => error,
        };
        let since = *away.get_or_insert_with(Instant::now);
        if !known || !error.is_passing() || since.elapsed() > PATIENCE {
            return Err(error);
        }
        screen.lost()?;
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The build in a document.
pub(super) fn read_build(api: &Api, document: &RawValue) -> Result<Build, ClientError> {
    serde_json::from_str(document.get()).map_err(|error| ClientError::NotKiln {
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
    if let Some(by) = build.superseded_by {
        text = format!("{text}\n  superseded by build {by}, which is newer");
    }
    text = format!("{text}\n  {}", styled(FAINT, &format!("kiln get {}", build.id)));
    screen.say(&text)?;
    Ok(Exit::of(state))
}
