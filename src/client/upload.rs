//! Sending a folder to the service: packed, compressed and sent at the same time, so that neither end holds it in memory.

use std::{
    io::{self, Write},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures::stream;
use reqwest::{Body, header};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{
    api::PAUSE,
    context::{Context, ContextError},
    error::ClientError,
    live::TICK,
    screen::{FAINT, styled},
    text::size,
    verbs::Session,
};

/// Bytes that are sent at a time, and how many such pieces wait for a slow connection.
const PIECE: usize = 64 * 1024;
const AHEAD: usize = 4;
/// Most files that are named when they are left out.
const NAMED: usize = 5;

/// The service's word for having no room for another archive at present.
const BUSY: &str = "uploads_busy";
/// How long to come back for a turn. The service lets each request wait for a while, too.
const BUSY_PATIENCE: Duration = Duration::from_mins(2);

/// What the service says of an upload.
#[derive(Deserialize)]
struct Upload {
    id: String,
    sha256: Option<String>,
}

/// Sends the folder, and gives the source that stands for it. Waits while too many others send.
pub(super) async fn send(session: &mut Session, context: Context) -> Result<Value, ClientError> {
    for path in context.left_out.iter().take(NAMED) {
        let path = path.display();
        session.screen.say(&format!(
            "kiln: {path} is left out: it is neither a file nor a folder nor a link"
        ))?;
    }
    let context = Arc::new(context);
    let begun = Instant::now();
    let mut told = false;
    loop {
        let pause = match send_once(session, &context).await {
            Err(ClientError::Problem(problem)) if problem.code == BUSY && begun.elapsed() < BUSY_PATIENCE => {
                problem.retry_after.unwrap_or(PAUSE)
            }
            outcome => return outcome,
        };
        if !told {
            told = true;
            session
                .screen
                .say("kiln: the service takes as many folders as it can at the moment; waiting for a turn")?;
        }
        tokio::time::sleep(pause).await;
    }
}

async fn send_once(session: &mut Session, context: &Arc<Context>) -> Result<Value, ClientError> {
    let (files, bytes, subdir) = (context.files(), context.bytes(), context.subdir);
    let what = match files {
        1 => "1 file".to_owned(),
        files => format!("{files} files"),
    };
    let context = Arc::clone(context);
    let (sender, pieces) = mpsc::channel(AHEAD);
    let read = Arc::new(AtomicU64::new(0));
    let progress = Arc::clone(&read);
    let packing = tokio::task::spawn_blocking(move || {
        let pieces = Pieces {
            buffer: BytesMut::with_capacity(PIECE),
            hash: Sha256::new(),
            bytes: 0,
            sender: sender.clone(),
        };
        let packed = context
            .pack(pieces, |read| {
                progress.fetch_add(read, Ordering::Relaxed);
            })
            .and_then(|mut pieces| {
                pieces.flush().map_err(ContextError::Write)?;
                Ok((hex::encode(pieces.hash.finalize()), pieces.bytes))
            });
        if packed.is_err() {
            // An upload that ends early must not look whole. Nobody listens when it was refused.
            let _ = sender.blocking_send(Err(io::Error::other("the folder can't be packed")));
        }
        packed
    });
    let body = stream::unfold(pieces, |mut pieces| async move {
        let piece: io::Result<Bytes> = pieces.recv().await?;
        Some((piece, pieces))
    });
    let mut request = session.api.post(&["v1", "uploads"]);
    if let Some(project) = &session.settings.project {
        request = request.query(&[("project", project.as_str())]);
    }
    request = request
        .header(header::CONTENT_TYPE, "application/gzip")
        .body(Body::wrap_stream(body));
    let mut answer = pin!(session.api.send_unlimited(request));
    let mut ticks = tokio::time::interval(TICK);
    let answer = loop {
        tokio::select! {
            answer = &mut answer => break answer,
            _ = ticks.tick() => session.screen.sending(&what, bytes, read.load(Ordering::Relaxed))?,
        }
    };
    session.screen.end()?;
    let packed = match packing.await {
        Ok(packed) => packed,
        Err(error) => return Err(ClientError::Output(io::Error::other(error))),
    };
    let ((digest, sent), answer) = match (packed, answer) {
        (Ok(packed), Ok(answer)) => (packed, answer),
        // A refusal says more than that nobody took the rest.
        (Err(ContextError::Write(_)) | Ok(_), Err(refusal)) => return Err(refusal),
        (Err(error), _) => return Err(error.into()),
    };
    let upload: Upload = session.api.body(answer).await?;
    if upload
        .sha256
        .is_some_and(|stored| stored.trim_start_matches("sha256:") != digest)
    {
        return Err(ClientError::Lost {
            url: session.api.url().clone(),
            instead: Some("the service got something else than was sent; send it again".to_owned()),
        });
    }
    let text = format!("kiln: sent {what}, {} ({} packed)", size(bytes), size(sent));
    session.screen.say(&styled(FAINT, &text))?;
    Ok(json!({"type": "upload", "id": upload.id, "subdir": subdir}))
}

/// Takes the archive as it is written, and hands it on in pieces.
struct Pieces {
    buffer: BytesMut,
    hash: Sha256,
    bytes: u64,
    sender: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for Pieces {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = self.buffer.split().freeze();
        if piece.is_empty() {
            return Ok(());
        }
        self.hash.update(&piece);
        self.bytes += piece.len() as u64;
        self.sender
            .blocking_send(Ok(piece))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
