//! Object storage for the journals of finished builds: a folder, S3 or whatever else speaks one of these languages.

mod format;
pub mod metrics;
pub mod mover;

use std::{
    collections::VecDeque,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use chrono::DateTime;
use object_store::{
    ClientOptions, ObjectStore, ObjectStoreExt as _, ObjectStoreScheme, RetryConfig,
    aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder,
    local::LocalFileSystem,
    path::{Path, PathPart},
};
use url::Url;

pub use self::format::FormatError;
use self::format::Index;
use crate::store::{
    archives::{Archived, ObjectId},
    journal::Page,
};

/// How long a reader waits for a part of an object, and a request that moves a journal for its answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// Memory for indexes of objects that were read lately.
const INDEXES: usize = 8 << 20;

/// Why the archive didn't do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// This process knows of none.
    #[error("the journal is in an archive, and none is configured here")]
    NotConfigured,
    /// It can't be reached, refuses, or doesn't have the object: an operator may mend that.
    #[error("the archive doesn't give or take an object")]
    Unavailable(#[source] object_store::Error),
    /// It doesn't answer in time.
    #[error("the archive doesn't answer in time")]
    Slow,
    /// What it gives isn't what was written.
    #[error("the archived journal {object} is damaged")]
    Damaged {
        /// The object's name.
        object: Path,
        /// What is wrong.
        #[source]
        source: FormatError,
    },
    /// It can't be used with the address.
    #[error("`archive.url` can't be used: {0}")]
    Address(String),
}

impl From<object_store::Error> for ArchiveError {
    fn from(error: object_store::Error) -> Self {
        Self::Unavailable(error)
    }
}

type Indexes = VecDeque<(ObjectId, Arc<Index>)>;

/// An archive. Cheap to clone.
#[derive(Clone)]
pub struct Archive {
    store: Arc<dyn ObjectStore>,
    folder: Path,
    indexes: Arc<Mutex<Indexes>>,
}

impl Archive {
    /// An archive in a folder of this store.
    pub fn new(store: Arc<dyn ObjectStore>, folder: Path) -> Self {
        Self {
            store,
            folder,
            indexes: Arc::default(),
        }
    }

    /// The archive at an address: `file:///folder`, which is made, or `s3://`, `gs://`, `az://` with bucket and folder.
    /// What else a store needs, credentials above all, comes from the environment (`AWS_…`, `GOOGLE_…`, `AZURE_…`).
    /// Nothing is sent yet.
    pub fn open(url: &Url) -> Result<Self, ArchiveError> {
        let unusable = |error: &dyn std::error::Error| ArchiveError::Address(error.to_string());
        let (scheme, folder) = ObjectStoreScheme::parse(url).map_err(|error| unusable(&error))?;
        let folder = Path::parse(folder).map_err(|error| unusable(&error))?;
        let retry = RetryConfig {
            max_retries: 3,
            retry_timeout: PATIENCE,
            ..RetryConfig::default()
        };
        let options = ClientOptions::new()
            .with_connect_timeout(PATIENCE / 3)
            .with_timeout(PATIENCE)
            .with_user_agent(http::HeaderValue::from_static("kiln"));
        // The choice is the process's, and another part may have made it before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store: Arc<dyn ObjectStore> = match scheme {
            ObjectStoreScheme::Local => {
                let path: PathBuf = url
                    .to_file_path()
                    .map_err(|()| ArchiveError::Address(format!("{url} names no folder of this host")))?;
                let mut folder = std::fs::DirBuilder::new();
                folder
                    .recursive(true)
                    .mode(0o700)
                    .create(&path)
                    .map_err(|error| unusable(&error))?;
                // Rows are deleted once an object is written, so it has to be on disk by then.
                let store = LocalFileSystem::new_with_prefix(path)
                    .map_err(|error| unusable(&error))?
                    .with_fsync(true)
                    .with_automatic_cleanup(true);
                return Ok(Self::new(Arc::new(store), Path::default()));
            }
            ObjectStoreScheme::AmazonS3 => Arc::new(
                AmazonS3Builder::from_env()
                    .with_url(url.as_str())
                    .with_retry(retry)
                    .with_client_options(environment(options))
                    .build()
                    .map_err(|error| unusable(&error))?,
            ),
            ObjectStoreScheme::GoogleCloudStorage => Arc::new(
                GoogleCloudStorageBuilder::from_env()
                    .with_url(url.as_str())
                    .with_retry(retry)
                    .with_client_options(options)
                    .build()
                    .map_err(|error| unusable(&error))?,
            ),
            ObjectStoreScheme::MicrosoftAzure => Arc::new(
                MicrosoftAzureBuilder::from_env()
                    .with_url(url.as_str())
                    .with_retry(retry)
                    .with_client_options(options)
                    .build()
                    .map_err(|error| unusable(&error))?,
            ),
            _ => {
                let expected = "expected file://, s3://, gs:// or az://";
                return Err(ArchiveError::Address(format!("{url}: {expected}")));
            }
        };
        Ok(Self::new(store, folder))
    }

    /// Where an object is: by day, so that people and rules of a store's own find it, and by build.
    fn path(&self, object: ObjectId) -> Path {
        let id = object.build.0;
        let milliseconds = i64::try_from(id.as_u128() >> 80).unwrap_or_default();
        let day = DateTime::from_timestamp_millis(milliseconds).unwrap_or_default();
        let name = format!("{id}.{}.jsonl.zst", object.tries);
        [day.format("%Y-%m-%d").to_string(), name]
            .into_iter()
            .map(PathPart::from)
            .fold(self.folder.clone(), Path::join)
    }

    /// The entries after `after`, as many as one frame holds; empty after the last.
    pub(super) async fn read(&self, archived: Archived, after: i64) -> Result<Page, ArchiveError> {
        let index = self.index(archived).await?;
        let Some(frame) = index.after(after) else {
            return Ok(Page::new());
        };
        let path = self.path(archived.object);
        let bytes = self
            .range(&path, frame.offset..frame.offset + u64::from(frame.bytes))
            .await?;
        format::entries(frame, &bytes, after).map_err(|source| ArchiveError::Damaged { object: path, source })
    }

    /// Whether an object can be read.
    pub(super) async fn check(&self, archived: Archived) -> Result<(), ArchiveError> {
        if self.known(archived.object).is_some() {
            within(self.store.head(&self.path(archived.object))).await.map(drop)
        } else {
            self.index(archived).await.map(drop)
        }
    }

    async fn index(&self, archived: Archived) -> Result<Arc<Index>, ArchiveError> {
        if let Some(index) = self.known(archived.object) {
            return Ok(index);
        }
        let path = self.path(archived.object);
        let begin = archived.bytes.saturating_sub(archived.index_bytes);
        let bytes = self.range(&path, begin..archived.bytes).await?;
        let index = Index::read(&bytes, archived.object.build, archived.head, begin)
            .map_err(|source| ArchiveError::Damaged { object: path, source })?;
        let index = Arc::new(index);
        self.remember(archived.object, Arc::clone(&index));
        Ok(index)
    }

    fn known(&self, object: ObjectId) -> Option<Arc<Index>> {
        let mut indexes = self.indexes();
        let position = indexes.iter().position(|(known, _)| *known == object)?;
        let found = indexes.remove(position)?;
        let index = Arc::clone(&found.1);
        indexes.push_back(found);
        Some(index)
    }

    fn remember(&self, object: ObjectId, index: Arc<Index>) {
        let mut indexes = self.indexes();
        indexes.push_back((object, index));
        let mut size: usize = indexes.iter().map(|(_, index)| index.size()).sum();
        while size > INDEXES
            && let Some((_, oldest)) = indexes.pop_front()
        {
            size -= oldest.size();
        }
    }

    fn indexes(&self) -> std::sync::MutexGuard<'_, Indexes> {
        // Whole after every statement.
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn range(&self, path: &Path, range: std::ops::Range<u64>) -> Result<Bytes, ArchiveError> {
        let wanted = range.end - range.start;
        let bytes = within(self.store.get_range(path, range)).await?;
        if bytes.len() as u64 == wanted {
            Ok(bytes)
        } else {
            Err(ArchiveError::Damaged {
                object: path.clone(),
                source: FormatError::Index("the object is too short"),
            })
        }
    }

    /// Removes an object and those that earlier tries may have left. That some aren't there is nothing wrong.
    pub async fn remove(&self, object: ObjectId) -> Result<(), ArchiveError> {
        // Every try removes what those before it left; more than one is left only where that failed, too.
        for tries in (1..=object.tries).rev().take(8) {
            match within(self.store.delete(&self.path(ObjectId { tries, ..object }))).await {
                Ok(()) | Err(ArchiveError::Unavailable(object_store::Error::NotFound { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Options of the environment for servers of one's own: `AWS_ALLOW_HTTP`.
fn environment(options: ClientOptions) -> ClientOptions {
    let allow = std::env::var("AWS_ALLOW_HTTP").is_ok_and(|value| value.eq_ignore_ascii_case("true") || value == "1");
    options.with_allow_http(allow)
}

async fn within<T>(request: impl Future<Output = object_store::Result<T>>) -> Result<T, ArchiveError> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(ArchiveError::Slow),
    }
}
