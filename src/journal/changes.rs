//! Following the states of many builds, from any point, live or long after.

use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::watch;

use super::Signals;
use crate::{
    domain::{event::Change, project::ProjectName},
    store::{self, Error},
};

/// Reads the changes of one project's builds, or of all, in order, for ever.
pub struct ChangeReader {
    pool: PgPool,
    signals: Signals,
    news: watch::Receiver<u64>,
    project: Option<ProjectName>,
    after: i64,
}

impl ChangeReader {
    /// A reader of the changes after `after`; of those to come when absent.
    pub async fn open(
        pool: &PgPool,
        signals: &Signals,
        project: Option<ProjectName>,
        after: Option<i64>,
    ) -> Result<Self, Error> {
        let news = signals.changes();
        let after = if let Some(after) = after {
            after
        } else {
            store::changes::number(pool).await?;
            store::changes::head(pool).await?
        };
        Ok(Self {
            pool: pool.clone(),
            signals: signals.clone(),
            news,
            project,
            after,
        })
    }

    /// Number of the last change that was returned, or the one the reader began after.
    pub const fn position(&self) -> i64 {
        self.after
    }

    /// The next changes; waits for some. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Vec<Change>, Error> {
        loop {
            let page = self.available().await?;
            if !page.is_empty() {
                return Ok(page);
            }
            let poll: Duration = self.signals.poll_interval();
            // Whether it is news or time to look makes no difference.
            let _ = tokio::time::timeout(poll, self.news.changed()).await;
        }
    }

    async fn available(&mut self) -> Result<Vec<Change>, Error> {
        let mut page = store::changes::read(&self.pool, self.project.as_ref(), self.after).await?;
        if page.is_empty() {
            self.signals.number_changes(&self.pool).await?;
            page = store::changes::read(&self.pool, self.project.as_ref(), self.after).await?;
        }
        if let Some(last) = page.last() {
            self.after = last.seq;
        }
        Ok(page)
    }
}
