//! Taking an archive from the network to a file without a name, which is gone whenever its last user is, even if that
//! user is killed.

use std::{io, path::Path, time::Duration};

use axum::body::{Body, Bytes};
use http_body_util::BodyExt as _;
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::File,
    io::{AsyncSeekExt as _, AsyncWriteExt as _, BufWriter},
    time::Instant,
};

use super::digest::Sha256Bytes;
use crate::http::error::ApiError;

/// The next piece of a body must arrive within this time.
const PATIENCE: Duration = Duration::from_secs(30);

/// An archive that has arrived, as it is.
#[derive(Debug)]
pub(super) struct Spooled {
    /// The archive, at its beginning.
    pub(super) file: File,
    pub(super) sha256: Sha256Bytes,
    pub(super) bytes: u64,
}

/// How fast a body must arrive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// On average, from its beginning on.
    pub(super) bytes_per_second: u64,
    /// For so long it doesn't matter.
    pub(super) grace: Duration,
}

impl Pace {
    /// How long the first bytes of a body may have been waited for; `None` for as long as they like.
    fn allows(self, bytes: u64) -> Option<Duration> {
        let millis = bytes.saturating_mul(1000).checked_div(self.bytes_per_second)?;
        Some(Duration::from_millis(millis).max(self.grace))
    }
}

/// Takes a body of at most `limit` bytes.
pub(super) async fn spool(mut body: Body, folder: Option<&Path>, limit: u64, pace: Pace) -> Result<Spooled, ApiError> {
    let folder = folder.map_or_else(std::env::temp_dir, Path::to_owned);
    let file = tokio::task::spawn_blocking(move || tempfile::tempfile_in(folder))
        .await
        .map_err(|error| ApiError::Spool(io::Error::other(error)))?
        .map_err(ApiError::Spool)?;
    let mut file = BufWriter::with_capacity(256 << 10, File::from_std(file));
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    // What it takes to write a piece isn't the sender's fault.
    let mut waited = Duration::ZERO;
    while let Some(piece) = next(&mut body, pace, bytes, &mut waited).await? {
        bytes += piece.len() as u64;
        if bytes > limit {
            return Err(ApiError::UploadTooLarge(limit));
        }
        hash.update(&piece);
        file.write_all(&piece).await.map_err(ApiError::Spool)?;
    }
    file.flush().await.map_err(ApiError::Spool)?;
    let mut file = file.into_inner();
    file.rewind().await.map_err(ApiError::Spool)?;
    Ok(Spooled {
        file,
        sha256: hash.finalize().into(),
        bytes,
    })
}

/// The piece behind the first `bytes`, which were waited for as long as `waited` says.
async fn next(body: &mut Body, pace: Pace, bytes: u64, waited: &mut Duration) -> Result<Option<Bytes>, ApiError> {
    loop {
        let left = pace.allows(bytes).map_or(PATIENCE, |all| all.saturating_sub(*waited));
        let began = Instant::now();
        let frame = tokio::time::timeout(left.min(PATIENCE), body.frame())
            .await
            .map_err(|_| {
                if left < PATIENCE {
                    ApiError::UploadTooSlow(pace.bytes_per_second)
                } else {
                    ApiError::BodyTimeout
                }
            })?;
        *waited += began.elapsed();
        match frame {
            None => return Ok(None),
            Some(Err(_)) => return Err(ApiError::BodyIncomplete),
            // Trailers are nothing to us.
            Some(Ok(frame)) => {
                if let Ok(piece) = frame.into_data() {
                    return Ok(Some(piece));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, stream};

    use super::*;

    const PACE: Pace = Pace {
        bytes_per_second: 1000,
        grace: Duration::from_secs(20),
    };

    /// Takes pieces that come after a pause each; says how long that took, too.
    async fn take(pieces: Vec<(u64, usize)>, pace: Pace) -> (Result<Spooled, ApiError>, Duration) {
        let pieces = stream::iter(pieces).then(|(pause, bytes)| async move {
            tokio::time::sleep(Duration::from_secs(pause)).await;
            Ok::<_, io::Error>(Bytes::from(vec![7; bytes]))
        });
        let began = Instant::now();
        let spooled = spool(Body::from_stream(pieces), None, 1 << 20, pace).await;
        (spooled, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn slow_at_first_is_fine_when_it_catches_up() {
        let (spooled, _) = take(vec![(19, 1), (0, 40_000), (15, 1), (5, 1)], PACE).await;
        assert_eq!(spooled.expect("taken").bytes, 40_003);
    }

    #[tokio::test(start_paused = true)]
    async fn who_stays_slow_is_refused_as_soon_as_that_is_sure() {
        // A byte a second would hold a turn for days.
        let (refused, took) = take(vec![(1, 1); 100], PACE).await;
        assert!(matches!(refused, Err(ApiError::UploadTooSlow(1000))));
        assert_eq!(took.as_secs(), 20);
        // 25 seconds' worth, and then hardly anything.
        let mut pieces = vec![(1, 25_000)];
        pieces.extend([(1, 1); 100]);
        let (refused, took) = take(pieces, PACE).await;
        assert!(matches!(refused, Err(ApiError::UploadTooSlow(1000))));
        assert_eq!(took.as_secs(), 25);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_too_long_whatever_came_before() {
        let free = Pace {
            bytes_per_second: 0,
            ..PACE
        };
        for pace in [PACE, free] {
            let (refused, took) = take(vec![(0, 1 << 19), (31, 1)], pace).await;
            assert!(matches!(refused, Err(ApiError::BodyTimeout)));
            assert_eq!(took, PATIENCE);
        }
        let (spooled, _) = take(vec![(29, 1); 10], free).await;
        assert_eq!(spooled.expect("no minimum").bytes, 10);
    }
}
