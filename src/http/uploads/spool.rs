//! Taking an archive from the network to a file without a name, which is gone whenever its last user is, even if that
//! user is killed.

use std::{io, path::Path, time::Duration};

use axum::body::{Body, Bytes};
use http_body_util::BodyExt as _;
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::File,
    io::{AsyncSeekExt as _, AsyncWriteExt as _, BufWriter},
};

use super::digest::Sha256Bytes;
use crate::http::error::ApiError;

/// The next piece of a body must arrive within this time.
const PATIENCE: Duration = Duration::from_secs(30);

/// An archive that has arrived, as it is.
pub(super) struct Spooled {
    /// The archive, at its beginning.
    pub(super) file: File,
    pub(super) sha256: Sha256Bytes,
    pub(super) bytes: u64,
}

/// Takes a body of at most `limit` bytes.
pub(super) async fn spool(mut body: Body, folder: Option<&Path>, limit: u64) -> Result<Spooled, ApiError> {
    let folder = folder.map_or_else(std::env::temp_dir, Path::to_owned);
    let file = tokio::task::spawn_blocking(move || tempfile::tempfile_in(folder))
        .await
        .map_err(|error| ApiError::Spool(io::Error::other(error)))?
        .map_err(ApiError::Spool)?;
    let mut file = BufWriter::with_capacity(256 << 10, File::from_std(file));
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    while let Some(piece) = next(&mut body).await? {
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

async fn next(body: &mut Body) -> Result<Option<Bytes>, ApiError> {
    loop {
        let frame = tokio::time::timeout(PATIENCE, body.frame())
            .await
            .map_err(|_| ApiError::BodyTimeout)?;
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
