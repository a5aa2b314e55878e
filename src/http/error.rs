//! Everything that can go wrong with a call.

use std::{io, sync::Arc};

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use kiln_agent::archive;

use crate::{
    domain::{
        project::Scope,
        spec::reader::FieldError,
        state::{IllegalTransition, StateName},
    },
    journal::{ReadError, archive::ArchiveError},
    store::{self, secrets::seal::SealError},
};

/// Why a call wasn't answered as asked. [`super::problem`] turns it into a problem document.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// No token, or none that is valid.
    #[error("not authenticated")]
    Unauthenticated(TokenProblem),
    /// The token doesn't allow it.
    #[error("the token lacks the scope {0}")]
    Forbidden(Scope),
    /// A token can't give away more than it has.
    #[error("a token can't be given scopes that its maker lacks")]
    ScopesBeyondOwn(Vec<FieldError>),
    /// What the path names isn't there, or isn't the caller's.
    #[error("{0:?} not found")]
    NotFound(Missing),
    /// The path doesn't take this method.
    #[error("method not allowed")]
    MethodNotAllowed,
    /// None of the forms that can be had is acceptable.
    #[error("not acceptable")]
    NotAcceptable(&'static [&'static str]),
    /// The body didn't arrive in time.
    #[error("the body didn't arrive in time")]
    BodyTimeout,
    /// The connection ended before the body did.
    #[error("the body ended early")]
    BodyIncomplete,
    /// The body is larger than this many bytes.
    #[error("the body is larger than {0} bytes")]
    BodyTooLarge(usize),
    /// The archive is larger than this many bytes.
    #[error("the archive is larger than {0} bytes")]
    UploadTooLarge(u64),
    /// The archive arrives at less than this many bytes per second.
    #[error("the archive arrives at less than {0} bytes per second")]
    UploadTooSlow(u64),
    /// Other archives are taken, and none of them was done in time.
    #[error("the upload's turn didn't come")]
    UploadsBusy,
    /// What was sent is no archive that is accepted.
    #[error("the archive isn't accepted")]
    InvalidArchive(#[source] archive::Error),
    /// The archive isn't the one that was announced; this is its SHA-256.
    #[error("the archive's SHA-256 is {0}")]
    DigestMismatch(String),
    /// The project's uploads may take this many bytes together.
    #[error("the project's uploads would take more than {0} bytes")]
    UploadsFull(u64),
    /// As many builds of the project wait as it may have.
    #[error("{0} builds of the project wait already")]
    QueueFull(u32),
    /// A build that isn't over needs the upload.
    #[error("a build needs the upload")]
    UploadInUse,
    /// An archive can't be kept or read while it is checked.
    #[error("the spooled archive")]
    Spool(#[source] io::Error),
    /// The body isn't JSON by its Content-Type.
    #[error("the body isn't declared as JSON")]
    UnsupportedMediaType,
    /// The body isn't JSON.
    #[error("the body isn't JSON")]
    MalformedJson(#[source] serde_json::Error),
    /// Fields of the body are invalid.
    #[error("fields of the body are invalid")]
    InvalidBody(Vec<FieldError>),
    /// Parameters of the query are invalid; the pointers hold their names.
    #[error("parameters are invalid")]
    InvalidQuery(Vec<FieldError>),
    /// A header is invalid.
    #[error("the header {name} is invalid")]
    InvalidHeader {
        /// Its name.
        name: &'static str,
        /// What would be right.
        detail: &'static str,
    },
    /// The body has an encoding that isn't taken.
    #[error("the body's encoding isn't taken")]
    UnsupportedEncoding,
    /// The body can't be decompressed.
    #[error("the body can't be decompressed")]
    MalformedEncoding(#[source] io::Error),
    /// The bytes of a log aren't whole frames.
    #[error("at offset {offset}: {problem}")]
    InvalidFrames {
        /// Where in the step's spool.
        offset: u64,
        /// What is wrong there.
        problem: &'static str,
    },
    /// Bytes of a log are missing before those that were sent; only those below this offset are held.
    #[error("only the bytes below {0} are held")]
    LogOffset(u64),
    /// The attempt is over.
    #[error("the attempt is over")]
    AttemptOver,
    /// As many pushes are in hand as there is memory for.
    #[error("too many pushes are in hand")]
    PushesFull,
    /// The journal can't be written.
    #[error("the journal can't be written")]
    Journal,
    /// The asked range begins behind the end of the text, which is this long.
    #[error("no such range in {0} bytes")]
    RangeNotSatisfiable(u64),
    /// The Idempotency-Key was used for another request.
    #[error("the idempotency key was used for another request")]
    IdempotencyKeyReused,
    /// A request with the same Idempotency-Key is being carried out.
    #[error("a request with the same idempotency key is in flight")]
    IdempotencyKeyInFlight,
    /// The build is over.
    #[error("the build is over: {0}")]
    BuildFinished(StateName),
    /// The build isn't over.
    #[error("the build isn't over: {0}")]
    BuildNotFinished(StateName),
    /// The build was deleted then, because it had been kept for long enough.
    #[error("the build was deleted")]
    BuildDeleted(DateTime<Utc>),
    /// There is a project of that name.
    #[error("the project exists")]
    ProjectExists,
    /// A secret can't be encrypted.
    #[error("a secret can't be encrypted")]
    Seal(#[source] SealError),
    /// Nothing shows that a delivery comes from the hook's sender.
    #[error("the delivery isn't the sender's")]
    DeliveryRefused,
    /// A delivery isn't what its sender sends.
    #[error("the delivery is malformed: {0}")]
    DeliveryMalformed(String),
    /// Nothing is known of what a delivery said.
    #[error("the delivery says nothing")]
    DeliveryUnread,
    /// The project has as many hooks as it may have.
    #[error("the project has {0} hooks")]
    HooksFull(i64),
    /// The database.
    #[error("the database failed")]
    Store(#[from] store::Error),
    /// The archive of journals.
    #[error("the archive failed")]
    Archive(#[source] ArchiveError),
    /// A metric couldn't be encoded.
    #[error("the metrics couldn't be encoded")]
    Metrics(#[from] std::fmt::Error),
    /// The handler panicked.
    #[error("the handler panicked: {0}")]
    Panic(String),
}

/// What is wrong with the caller's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenProblem {
    /// There is none.
    Missing,
    /// It doesn't have a token's form, or the header has another scheme.
    Malformed,
    /// Nobody knows it.
    Unknown,
    /// Its time is over.
    Expired,
    /// It is a stream ticket that nobody knows, or whose time is over.
    Ticket,
}

/// What wasn't found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// There is no such path.
    Route,
    /// The build.
    Build,
    /// The project.
    Project,
    /// The token.
    Token,
    /// The upload.
    Upload,
    /// The secret.
    Secret,
    /// The node.
    Node,
    /// The hook.
    Hook,
    /// The delivery to a hook.
    Delivery,
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Store(error) => Self::Store(error),
            ReadError::Archive(error) => Self::Archive(error),
            ReadError::Deleted => Self::NotFound(Missing::Build),
        }
    }
}

impl From<IllegalTransition> for ApiError {
    fn from(refused: IllegalTransition) -> Self {
        Self::BuildFinished(refused.from)
    }
}

impl IntoResponse for ApiError {
    /// Leaves the error for [`super::problem::render`], which knows the request that it belongs to.
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}
