//! Moving journals into the archive.

use std::{io, sync::Arc, time::Duration};

use object_store::buffered::BufWriter;
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;
use tokio::io::AsyncWriteExt as _;
use tokio_util::sync::CancellationToken;

use super::{
    Archive, ArchiveError, FormatError, PATIENCE,
    format::{self, Encoder},
    metrics::Metrics,
};
use crate::store::{
    self,
    archives::{self, Archived, Claim, ObjectId, Written},
    journal::Row,
};

/// Moves claimed at once; the database and the store share the work.
const AT_ONCE: usize = 4;
/// How long a claim holds. Whoever takes longer writes on for nothing: another does it, too, under another name.
const LEASE_SECONDS: u32 = 600;
/// Pause before a journal that couldn't be moved is tried again; doubles with each try, up to an hour.
const PAUSE: Duration = Duration::from_secs(30);
/// Smaller objects are sent in one piece; larger ones in pieces of this size. S3 takes no smaller pieces than 5 MiB.
const PIECE: usize = 8 << 20;

/// Why a journal wasn't moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// The archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The database.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The journal isn't what it has to be.
    #[error("the journal has {found} entries and its build says {expected}")]
    Incomplete {
        /// Entries in a row without a gap.
        found: i64,
        /// Entries by the build.
        expected: i64,
    },
    /// The journal can't be encoded.
    #[error("the journal can't be encoded")]
    Encode(#[source] FormatError),
    /// What was read back isn't what was written.
    #[error("the archive gives back something else than was written")]
    Differs,
    /// The process is ending.
    #[error("the process is ending")]
    Stopped,
}

impl MoveError {
    /// Whether other journals would fail just the same.
    const fn is_general(&self) -> bool {
        match self {
            Self::Archive(ArchiveError::Damaged { .. }) | Self::Incomplete { .. } | Self::Encode(_) | Self::Differs => {
                false
            }
            Self::Archive(_) | Self::Store(_) | Self::Stopped => true,
        }
    }
}

/// Moves what is due until nothing is left, the archive or the database is away, or `stop`. Builds are due when they
/// have been over for `rest_seconds`.
pub async fn move_due(
    pool: &PgPool,
    archive: &Archive,
    rest_seconds: u32,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> Result<(), MoveError> {
    let limit = i64::try_from(AT_ONCE).unwrap_or(1);
    while !stop.is_cancelled() {
        let claims = archives::claim(pool, rest_seconds, LEASE_SECONDS, limit).await?;
        if claims.is_empty() {
            return Ok(());
        }
        let moves = claims.into_iter().map(|claim| async move {
            let begun = std::time::Instant::now();
            let moved = stop.run_until_cancelled(move_one(pool, archive, claim)).await;
            (claim, moved, begun.elapsed())
        });
        let mut failure = None;
        for (claim, moved, took) in futures::future::join_all(moves).await {
            let build = claim.object.build;
            let pause = match moved {
                None => Duration::ZERO,
                Some(Ok(None)) => continue,
                Some(Ok(Some(written))) => {
                    metrics.moved(written.bytes, took);
                    tracing::debug!(build.id = %build, bytes = written.bytes, "moved a journal into the archive");
                    continue;
                }
                Some(Err(error)) => {
                    metrics.failures.inc();
                    let cause = std::error::Error::source(&error);
                    tracing::warn!(build.id = %build, error = %error, cause = ?cause, "a journal can't be moved into the archive");
                    let pause = pause(claim.object.tries);
                    if error.is_general() {
                        failure = Some(error);
                    }
                    pause
                }
            };
            // Where that fails, the claim ends by itself.
            let _ = archives::give_up(pool, claim, pause.as_secs_f64()).await;
        }
        if let Some(error) = failure {
            return Err(error);
        }
    }
    Ok(())
}

fn pause(tries: i32) -> Duration {
    let doublings = u32::try_from(tries.saturating_sub(1)).unwrap_or_default().min(7);
    (PAUSE * 2_u32.pow(doublings)).min(Duration::from_hours(1))
}

/// Moves one journal. `None` when somebody else has, or the build is gone.
pub async fn move_one(pool: &PgPool, archive: &Archive, claim: Claim) -> Result<Option<Written>, MoveError> {
    if claim.object.tries > 1 {
        // What earlier tries left is of no use to anybody.
        let tries = claim.object.tries - 1;
        archive.remove(ObjectId { tries, ..claim.object }).await?;
    }
    let written = archive.write(pool, claim).await?;
    archive.verify(claim, &written).await?;
    if archives::record(pool, claim, &written).await? {
        return Ok(Some(written));
    }
    archive.remove(claim.object).await?;
    Ok(None)
}

impl Archive {
    /// Writes a journal's object.
    pub async fn write(&self, pool: &PgPool, claim: Claim) -> Result<Written, MoveError> {
        let mut upload = BufWriter::with_capacity(Arc::clone(&self.store), self.path(claim.object), PIECE);
        let encoded = self.encode(pool, claim, &mut upload).await;
        match encoded {
            Ok(written) => {
                sent(upload.shutdown()).await?;
                Ok(written)
            }
            Err(error) => {
                // Pieces that were sent may stay; a rule of the store's own removes them.
                let _ = tokio::time::timeout(PATIENCE, upload.abort()).await;
                Err(error)
            }
        }
    }

    async fn encode(&self, pool: &PgPool, claim: Claim, upload: &mut BufWriter) -> Result<Written, MoveError> {
        let mut encoder = Encoder::new(claim.object.build).map_err(MoveError::Encode)?;
        let mut hash = Sha256::new();
        let mut bytes = 0;
        loop {
            let rows = store::journal::rows(pool, claim.object.build, encoder.last_seq()).await?;
            if rows.is_empty() {
                break;
            }
            // Compression takes a while, and others wait for this thread.
            let encoding = tokio::task::spawn_blocking(move || (encode_rows(&mut encoder, &rows), encoder));
            let (ready, back) = encoding.await.map_err(|_| MoveError::Stopped)?;
            encoder = back;
            let ready = ready.map_err(MoveError::Encode)?.ok_or(MoveError::Incomplete {
                found: encoder.last_seq(),
                expected: claim.head,
            })?;
            hash.update(&ready);
            bytes += ready.len() as u64;
            sent(upload.write_all(&ready)).await?;
        }
        if encoder.last_seq() != claim.head {
            return Err(MoveError::Incomplete {
                found: encoder.last_seq(),
                expected: claim.head,
            });
        }
        let (rest, index_bytes) = encoder.finish().map_err(MoveError::Encode)?;
        hash.update(&rest);
        bytes += rest.len() as u64;
        sent(upload.write_all(&rest)).await?;
        Ok(Written {
            bytes,
            index_bytes,
            sha256: hash.finalize().into(),
        })
    }

    /// Reads an object back, every entry of it.
    pub async fn verify(&self, claim: Claim, written: &Written) -> Result<(), MoveError> {
        let archived = Archived {
            object: claim.object,
            head: claim.head,
            bytes: written.bytes,
            index_bytes: written.index_bytes,
        };
        let path = self.path(claim.object);
        let index = self.index(archived).await?;
        let mut hash = Sha256::new();
        for frame in index.frames() {
            let end = frame.offset + u64::from(frame.bytes);
            let bytes = self.range(&path, frame.offset..end).await?;
            hash.update(&bytes);
            // What can be read is what counts, not only that the bytes are the same.
            let frame = *frame;
            let decoding = tokio::task::spawn_blocking(move || format::entries(frame, &bytes, 0).map(drop));
            let decoded = decoding.await.map_err(|_| MoveError::Stopped)?;
            decoded.map_err(|source| ArchiveError::Damaged {
                object: path.clone(),
                source,
            })?;
        }
        let index = self
            .range(&path, written.bytes - written.index_bytes..written.bytes)
            .await?;
        hash.update(&index);
        if <[u8; 32]>::from(hash.finalize()) == written.sha256 {
            Ok(())
        } else {
            Err(MoveError::Differs)
        }
    }
}

/// What is ready to be written once these rows were taken; `None` when they don't follow on those before.
fn encode_rows(encoder: &mut Encoder, rows: &[Row]) -> Result<Option<Vec<u8>>, FormatError> {
    let mut ready = Vec::new();
    for row in rows {
        if row.first_seq != encoder.last_seq() + 1 {
            return Ok(None);
        }
        ready.extend(encoder.push(&row.lines)?);
        if row.last_seq != encoder.last_seq() {
            return Ok(None);
        }
    }
    Ok(Some(ready))
}

/// Waits for a piece to be taken.
async fn sent(write: impl Future<Output = io::Result<()>>) -> Result<(), ArchiveError> {
    match tokio::time::timeout(PATIENCE * 4, write).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(ArchiveError::Unavailable(error.downcast().unwrap_or_else(|error| {
            object_store::Error::Generic {
                store: "archive",
                source: error.into(),
            }
        }))),
        Err(_) => Err(ArchiveError::Slow),
    }
}
