//! `kiln logs`.

use futures::StreamExt as _;
use reqwest::header;
use serde::Deserialize;

use super::Session;
use crate::client::{
    args::Logs,
    error::{ClientError, Exit},
    follow::What,
    interrupt::Interrupts,
    screen::Output,
    watch::{Attended, Watch, conclude},
    wire::Entry,
};

/// How often a log that breaks off is taken up again without anything new in between.
const TRIES: u32 = 5;

/// `kiln logs`.
pub(in crate::client) async fn logs(flags: Logs) -> Result<Exit, ClientError> {
    let mut session = Session::open(&flags.common)?;
    let id = session.find(&flags.id).await?;
    if !flags.follow {
        let mut position = flags.from;
        return read(&mut session, &id, flags.step.as_deref(), &mut position).await;
    }
    let mut interrupts = Interrupts::listen()?;
    let watch = Watch {
        api: &session.api,
        screen: &mut session.screen,
        id,
        what: match flags.step {
            Some(step) => What::Output(Some(step)),
            None if session.json => What::Output(None),
            None => What::Events,
        },
        after: flags.from,
        known: false,
        events_as_json: session.json,
        output: Output::Out,
    };
    match watch.attend(&mut interrupts).await? {
        Attended::Detached => Ok(Exit::Interrupted),
        Attended::Over(build, _) => conclude(&mut session.screen, &build),
    }
}

/// The output as it is now. One that breaks off is taken up where it did.
async fn read(session: &mut Session, id: &str, step: Option<&str>, position: &mut i64) -> Result<Exit, ClientError> {
    let mut left = TRIES;
    loop {
        let before = *position;
        let Err(error) = read_on(session, id, step, position).await else {
            session.screen.end()?;
            return Ok(Exit::Success);
        };
        if !matches!(error, ClientError::Lost { .. }) || left == 0 {
            return Err(error);
        }
        left = if *position > before { TRIES } else { left - 1 };
    }
}

async fn read_on(session: &mut Session, id: &str, step: Option<&str>, position: &mut i64) -> Result<(), ClientError> {
    let mut request = session
        .api
        .get(&["v1", "builds", id, "logs"])
        .header(header::ACCEPT, "application/x-ndjson")
        .query(&[("from", *position)]);
    if let Some(step) = step {
        request = request.query(&[("step", step)]);
    }
    let response = session.api.send_unlimited(request).await?;
    let mut chunks = response.bytes_stream();
    let mut line = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| ClientError::Lost {
            url: session.api.url().clone(),
            instead: Some(error.without_url().to_string()),
        })?;
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(part);
            if line.ends_with(b"\n") {
                one(session, &line, position)?;
                line.clear();
            }
        }
    }
    Ok(())
}

fn one(session: &mut Session, line: &[u8], position: &mut i64) -> Result<(), ClientError> {
    #[derive(Deserialize)]
    struct Kind {
        event: String,
    }
    let entry = std::str::from_utf8(line).ok().and_then(|line| {
        let Kind { event } = serde_json::from_str(line).ok()?;
        Entry::read(&event, line)
    });
    let Some(entry) = entry else {
        return Err(ClientError::NotKiln {
            url: session.api.url().clone(),
            what: "a line of the log can't be read".to_owned(),
        });
    };
    if entry.seq <= *position {
        return Ok(());
    }
    *position = entry.seq;
    if session.json {
        Ok(session.screen.print(&format!("{}\n", entry.data))?)
    } else {
        Ok(session.screen.show(&entry)?)
    }
}
