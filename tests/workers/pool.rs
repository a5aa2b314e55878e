//! Connections that break while nobody uses them.

use std::time::Duration;

use kiln::store::{self, Error};
use sqlx::{ConnectOptions as _, PgPool};

use super::support::DEADLINE;

#[sqlx::test]
async fn a_connection_that_broke_costs_one_call_at_most(observer: PgPool) {
    let url = observer.connect_options().to_url_lossy();
    let pool = store::pool(url.as_str(), 1, DEADLINE).expect("a pool");
    let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&pool)
        .await
        .expect("connects");
    let ended: bool = sqlx::query_scalar("SELECT pg_terminate_backend($1, $2)")
        .bind(backend)
        .bind(i64::try_from(Duration::from_secs(10).as_millis()).expect("fits"))
        .fetch_one(&observer)
        .await
        .expect("ends it");
    assert!(ended);

    if let Err(error) = store::check(&pool).await {
        assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    }
    store::check(&pool).await.expect("the pool has connected anew");
}
