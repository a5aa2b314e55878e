//! Requests that come at the same time share statements, and nothing else.

use std::collections::HashSet;

use futures::future::join_all;
use kiln::{
    domain::{project::Scope, state::StateName},
    store::{
        self, Error,
        builds::CreateOutcome,
        intake::Intake,
        tokens::{self, NewToken},
    },
};
use sqlx::{ConnectOptions as _, PgPool};
use tokio::time::timeout;
use uuid::Uuid;

use super::support::{DEADLINE, new_build, state};

async fn store_token(pool: &PgPool, hash: [u8; 32]) -> Uuid {
    let new = NewToken {
        id: Uuid::new_v4(),
        project: "default".parse().expect("a name"),
        name: "test".to_owned(),
        hash,
        scopes: vec![Scope::BuildsWrite],
        expires_at: None,
    };
    let token = tokens::create(pool, new).await.expect("stores");
    token.expect("there is such a project").id
}

#[sqlx::test]
async fn everybody_gets_the_answer_to_what_they_asked(pool: PgPool) {
    let intake = Intake::new(pool.clone());
    let known: Vec<Uuid> = [store_token(&pool, [0; 32]).await, store_token(&pool, [1; 32]).await].into();
    let requests = (0..300_u16).map(|number| {
        let (intake, known) = (intake.clone(), known.clone());
        async move {
            let which = number % 3;
            let token = intake
                .token([u8::try_from(which).expect("small"); 32])
                .await
                .expect("reads");
            assert_eq!(token.map(|token| token.id), known.get(usize::from(which)).copied());
            let mut new = new_build(0);
            let unknown = number % 50 == 7;
            if unknown {
                new.project = "nobodys".parse().expect("a name");
            }
            let id = new.id;
            match intake.create(new, None).await.expect("stores") {
                CreateOutcome::Created { build, superseded } => {
                    assert!(superseded.is_empty());
                    assert!(!unknown);
                    assert_eq!((build.id, build.state.name()), (id, StateName::Queued));
                    Some(id)
                }
                CreateOutcome::UnknownProject => {
                    assert!(unknown);
                    None
                }
                other => panic!("{other:?}"),
            }
        }
    });
    let created: HashSet<_> = join_all(requests).await.into_iter().flatten().collect();
    assert_eq!(created.len(), 294);
    for build in created {
        assert_eq!(state(&pool, build).await, StateName::Queued);
    }
    // Each has its first entry, and can be found by its image.
    for (statement, expected) in [
        ("SELECT count(*) FROM builds", 294),
        ("SELECT count(*) FROM journal WHERE first_seq = 1 AND last_seq = 1", 294),
        ("SELECT count(DISTINCT build_id) FROM build_terms", 294),
    ] {
        let count: i64 = sqlx::query_scalar(statement).fetch_one(&pool).await.expect("reads");
        assert_eq!(count, expected, "{statement}");
    }
}

#[sqlx::test]
async fn a_deleted_token_is_unknown_to_whoever_asks_next(pool: PgPool) {
    let intake = Intake::new(pool.clone());
    let project = "default".parse().expect("a name");
    for _ in 0..20 {
        let id = store_token(&pool, [9; 32]).await;
        // Some are being answered at the moment of the deletion.
        let before = tokio::spawn(join_all((0..20).map(|_| {
            let intake = intake.clone();
            async move { intake.token([9; 32]).await.expect("reads") }
        })));
        assert!(tokens::delete(&pool, &project, id).await.expect("deletes"));
        assert_eq!(intake.token([9; 32]).await.expect("reads"), None);
        timeout(DEADLINE, before)
            .await
            .expect("all are answered")
            .expect("no panic");
    }
}

#[sqlx::test]
async fn one_connection_is_enough_and_is_given_back(observer: PgPool) {
    let url = observer.connect_options().to_url_lossy();
    let pool = store::pool(url.as_str(), 1, DEADLINE).expect("a pool");
    let intake = Intake::new(pool.clone());
    let both = (0..50).map(|_| async {
        let (token, created) = tokio::join!(intake.token([1; 32]), intake.create(new_build(0), None));
        assert_eq!(token.expect("reads"), None);
        assert!(matches!(created.expect("stores"), CreateOutcome::Created { .. }));
        store::check(&pool).await.expect("has its turn");
    });
    timeout(DEADLINE, join_all(both)).await.expect("nobody waits for ever");
}

#[sqlx::test]
async fn without_a_database_everybody_is_told_so(pool: PgPool) {
    let intake = Intake::new(pool.clone());
    pool.close().await;
    let refused = join_all((0..20).map(|_| intake.token([1; 32])));
    for outcome in timeout(DEADLINE, refused).await.expect("nobody waits for ever") {
        assert!(matches!(outcome, Err(Error::Unavailable(_))), "{outcome:?}");
    }
}
