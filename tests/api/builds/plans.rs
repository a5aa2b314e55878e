//! How Postgres carries out the lists: by indexes that have the order already, whatever the number of builds.

use chrono::{DateTime, Utc};
use kiln::store::listing::{self, Filter};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, postgres::PgPoolOptions};

const BUILDS: usize = 20_000;
const LIMIT: u32 = 50;
/// No plan may touch more rows than this: of at most 4 projects and 2 states one page each, and what lies between.
const TOUCHED: f64 = 4.0 * 2.0 * 51.0 * 3.0;

/// Builds of the last weeks, half of them in one project; states, refs, images and labels by chance.
const FILL: &str = "
    SET session_replication_role = replica;
    INSERT INTO projects (name) SELECT 'p' || i FROM generate_series(1, 3) AS i;
    SELECT setseed(0.5);
    CREATE TEMP TABLE made AS
    SELECT lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(i::text), 1, 3) || '8'
               || substr(md5(i::text), 4, 15) AS hex,
           at, CASE WHEN random() < 0.5 THEN 'default' ELSE 'p' || 1 + i % 3 END AS project,
           (ARRAY['succeeded', 'failed', 'cancelled'])[1 + floor(random() * 3)::int] AS state,
           'r' || floor(random() * 20)::int AS ref, 'v' || floor(random() * 5)::int AS label
    FROM generate_series(1, $BUILDS) AS i, LATERAL (SELECT now() - i * interval '1 minute' AS at) t;
    INSERT INTO builds (id, project, state, spec, priority, attempts, failure_code, failure_message, created_at,
                        started_at, finished_at, journal_head)
    SELECT hex::uuid, project, state, jsonb_build_object('padding', repeat(md5(hex), 20)), 0, 1,
           CASE WHEN state = 'failed' THEN 'internal' END, CASE WHEN state = 'failed' THEN 'x' END, at, at, at, 4
    FROM made;
    INSERT INTO build_terms (project, term, build_id)
    SELECT project, unnest(ARRAY['ref=' || ref, 'image=r.example/app', 'label=team', 'label=team=' || label]), hex::uuid
    FROM made;
    ANALYZE";

/// A search, and the statement that carries it out: a part of its text, and its arguments.
fn searches() -> Vec<(Filter, &'static str, String)> {
    let project = || Some("default".parse().expect("a name"));
    let states = || {
        vec![
            "failed".parse().expect("a state"),
            "cancelled".parse().expect("a state"),
        ]
    };
    let label = |text: &str| text.parse::<kiln::domain::term::LabelTerm>().expect("a label").0;
    let reference = |text: &str| text.parse::<kiln::domain::term::RefTerm>().expect("a ref").0;
    let since: DateTime<Utc> = Utc::now() - chrono::TimeDelta::days(10);
    let ids = "'ffffffff-ffff-ffff-ffff-ffffffffffff', '00000000-0000-0000-0000-000000000000'";
    let by_state = "b.project = p.name AND b.state = s.state";
    let by_term = "FROM build_terms t";
    vec![
        (
            Filter::default(),
            "FROM builds\n         WHERE id < $1",
            format!("{ids}, null, null, 51"),
        ),
        (
            Filter {
                project: project(),
                ..Filter::default()
            },
            "WHERE project = $1 AND uuid_send(id) < uuid_send($2)",
            format!("'default', {ids}, null, null, 51"),
        ),
        (
            Filter {
                project: project(),
                created_after: Some(since),
                ..Filter::default()
            },
            "WHERE project = $1 AND uuid_send(id) < uuid_send($2)",
            format!("'default', {ids}, '{since}', null, 51"),
        ),
        (
            Filter {
                project: project(),
                states: states(),
                ..Filter::default()
            },
            by_state,
            format!("'default', '{{failed,cancelled}}', {ids}, null, null, 51"),
        ),
        (
            Filter {
                states: states(),
                ..Filter::default()
            },
            by_state,
            format!("null, '{{failed,cancelled}}', {ids}, null, null, 51"),
        ),
        (
            Filter {
                project: project(),
                terms: vec![label("team")],
                ..Filter::default()
            },
            by_term,
            format!("'default', 'label=team', {ids}, null, null, null, '{{}}', 51"),
        ),
        (
            Filter {
                terms: vec![label("team=v1")],
                states: states(),
                ..Filter::default()
            },
            by_term,
            format!("null, 'label=team=v1', {ids}, null, null, '{{failed,cancelled}}', '{{}}', 51"),
        ),
        (
            Filter {
                project: project(),
                terms: vec![label("team"), reference("r1")],
                ..Filter::default()
            },
            by_term,
            format!("'default', 'label=team', {ids}, null, null, null, '{{ref=r1}}', 51"),
        ),
    ]
}

async fn prepared(connection: &mut PgConnection, part: &str) -> String {
    let names: Vec<String> =
        sqlx::query_scalar("SELECT name FROM pg_prepared_statements WHERE strpos(statement, $1) > 0 AND name <> ''")
            .bind(part)
            .fetch_all(&mut *connection)
            .await
            .expect("reads");
    // The statement that asks names the part as a parameter and not in its text.
    let [name] = &names[..] else {
        panic!("{part}: {names:?}")
    };
    name.clone()
}

/// Checks a node of a plan and everything below it.
fn check(node: &Value, of: &str) {
    let number = |node: &Value, name: &str| node[name].as_f64().unwrap_or(0.0);
    let kind = node["Node Type"].as_str().expect("a type");
    let table = node["Relation Name"].as_str().unwrap_or_default();
    assert!(
        kind != "Seq Scan" || !["builds", "build_terms"].contains(&table),
        "{of} reads all of {table}: {node:#}"
    );
    assert!(!kind.contains("Bitmap"), "{of} gathers before it sorts: {node:#}");
    let read = (number(node, "Actual Rows") + number(node, "Rows Removed by Filter")) * number(node, "Actual Loops");
    // A second term is looked for among the builds that have the first, one in twenty here.
    let allowed = if of.contains("r1") {
        20.0 * 3.0 * f64::from(LIMIT)
    } else {
        TOUCHED
    };
    assert!(read <= allowed, "{of} touches {read} rows: {node:#}");
    for below in node["Plans"].as_array().into_iter().flatten() {
        check(below, of);
    }
}

#[sqlx::test]
async fn lists_come_from_indexes_in_order(pool: PgPool) {
    let one = PgPoolOptions::new()
        .max_connections(1)
        .connect_with(pool.connect_options().as_ref().clone())
        .await
        .expect("connects");
    let fill = FILL.replace("$BUILDS", &BUILDS.to_string());
    sqlx::raw_sql(AssertSqlSafe(fill)).execute(&one).await.expect("fills");
    for (filter, part, arguments) in searches() {
        // Prepares the statement as the service does; what it finds is looked at in `list`.
        listing::list(&one, &filter, None, LIMIT + 1)
            .await
            .expect_err("the rows hold no specification");
        let mut connection = one.acquire().await.expect("a connection");
        let name = prepared(&mut connection, part).await;
        // Postgres may plan for the arguments, or once for all.
        for mode in ["force_custom_plan", "force_generic_plan"] {
            sqlx::raw_sql(AssertSqlSafe(format!("SET plan_cache_mode = {mode}")))
                .execute(&mut *connection)
                .await
                .expect("sets");
            let explain = format!("EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE {name} ({arguments})");
            let plan: Value = sqlx::query_scalar(AssertSqlSafe(explain))
                .persistent(false)
                .fetch_one(&mut *connection)
                .await
                .expect("explains");
            let plan = &plan[0]["Plan"];
            assert_eq!(
                plan["Actual Rows"].as_f64(),
                Some(f64::from(LIMIT + 1)),
                "{arguments}: {plan:#}"
            );
            check(plan, &format!("{mode}: {arguments}"));
        }
    }
    one.close().await;
}
