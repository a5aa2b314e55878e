//! What an attempt needs to reach this service: addresses, and tokens of its own. For the upload that it is to build
//! from, and for its log.

use std::time::Duration;

use super::{Driver, Stopped};
use crate::{
    domain::{
        attempt_token::{AttemptKey, Purpose},
        failure::{Failure, FailureCode},
        secret::{LogAccess, UploadAccess},
    },
    runner::Runner,
};

impl<R: Runner> Driver<'_, R> {
    /// Gives the attempt access to its upload, if it has one, and to its log. The failure is how it ends, if it can't be.
    pub(super) async fn obtain_access(&mut self) -> Result<Result<(), Failure>, Stopped> {
        let attempt = self.lease.attempt;
        let uploaded = self.claimed.assignment.spec.source.upload().is_some();
        let Some(url) = self.context.service.url.get() else {
            if uploaded {
                let message = "Builds can't fetch uploads: the operator has to set `agent_url` (KILN_AGENT_URL), the address at which pods reach Kiln.";
                return Ok(Err(Failure::new(FailureCode::SourceFailed, message.to_owned())));
            }
            return Ok(Ok(()));
        };
        let base = format!("{}/internal/v1/attempts/{attempt}", url.as_str().trim_end_matches('/'));
        let key = self.attempt_key().await?;
        let credentials = &mut self.claimed.assignment.credentials;
        credentials.upload = uploaded.then(|| UploadAccess {
            url: format!("{base}/upload"),
            token: key.token(attempt, Purpose::Upload),
        });
        credentials.log = Some(LogAccess {
            url: format!("{base}/log"),
            token: key.token(attempt, Purpose::Log),
        });
        Ok(Ok(()))
    }

    /// What the tokens of attempts are made with.
    async fn attempt_key(&self) -> Result<AttemptKey, Stopped> {
        let mut backoff = Duration::from_millis(50);
        loop {
            match self.context.service.keys.get(&self.context.pool).await {
                Ok(key) => return Ok(key.clone()),
                Err(error) => {
                    let build = self.lease.attempt.build;
                    tracing::warn!(build.id = %build, error = ?error, "the key of attempts can't be read; trying again");
                }
            }
            self.pause(backoff).await?;
            backoff = (backoff * 2).min(Duration::from_secs(2));
        }
    }
}
