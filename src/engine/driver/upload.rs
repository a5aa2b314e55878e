//! What an attempt needs to fetch the upload that it is to build from: the service's address and a token of its own.

use std::time::Duration;

use super::{Driver, Stopped};
use crate::{
    domain::{
        failure::{Failure, FailureCode},
        secret::UploadAccess,
    },
    runner::Runner,
};

impl<R: Runner> Driver<'_, R> {
    /// Gives the attempt access to its upload, if it has one. The failure is how it ends, if it can't be.
    pub(super) async fn obtain_upload(&mut self) -> Result<Result<(), Failure>, Stopped> {
        let attempt = self.lease.attempt;
        if self.claimed.assignment.spec.source.upload().is_none() {
            return Ok(Ok(()));
        }
        let service = &self.context.service;
        let Some(url) = service.url.get() else {
            let message = "Builds can't fetch uploads: the operator has to set `agent_url` (KILN_AGENT_URL), the address at which pods reach Kiln.";
            return Ok(Err(Failure::new(FailureCode::SourceFailed, message.to_owned())));
        };
        let mut backoff = Duration::from_millis(50);
        let token = loop {
            match service.keys.get(&self.context.pool).await {
                Ok(key) => break key.token(attempt),
                Err(error) => {
                    tracing::warn!(build.id = %attempt.build, error = ?error, "the key of attempts can't be read; trying again");
                }
            }
            self.pause(backoff).await?;
            backoff = (backoff * 2).min(Duration::from_secs(2));
        };
        let url = format!(
            "{}/internal/v1/attempts/{attempt}/upload",
            url.as_str().trim_end_matches('/')
        );
        self.claimed.assignment.credentials.upload = Some(UploadAccess { url, token });
        Ok(Ok(()))
    }
}
