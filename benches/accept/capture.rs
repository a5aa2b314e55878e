//! Asks Postgres which statements a request makes, with which parameters. So pgbench can't be left behind by a change
//! of the code that it is compared with.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use sqlx::{Connection as _, PgConnection};

use crate::{database::Database, kiln::Kiln};

const LIMIT: Duration = Duration::from_secs(10);

/// What Postgres logs of a statement (`log_destination = jsonlog`).
#[derive(Deserialize)]
struct Line {
    message: String,
    detail: Option<String>,
    dbname: Option<String>,
}

/// A statement with its parameters, in the notation of SQL literals without quotes.
pub(crate) struct Statement {
    pub(crate) text: String,
    pub(crate) parameters: Vec<String>,
}

impl Statement {
    fn of(line: &Line) -> Option<Self> {
        let text = line
            .message
            .strip_prefix("execute ")?
            .split_once(": ")?
            .1
            .trim()
            .to_owned();
        let parameters = line.detail.as_deref().map(parameters).unwrap_or_default();
        Some(Self { text, parameters })
    }

    pub(crate) fn in_one_line(&self) -> String {
        self.text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// What one request comes to.
pub(crate) struct Captured {
    pub(crate) statements: Vec<Statement>,
    /// The id that the request was given, as it stands among the parameters.
    pub(crate) id: String,
    pub(crate) answer_bytes: usize,
}

/// Makes Postgres log every statement of sessions that begin from now on, or stops that.
pub(crate) async fn switch(database: &Database, on: bool) -> anyhow::Result<()> {
    let name = database.url.path().trim_start_matches('/');
    let change = if on {
        "SET log_statement = 'all'"
    } else {
        "RESET log_statement"
    };
    database.on_server(&format!("ALTER DATABASE {name} {change}")).await
}

/// Posts two builds and gives the statements of the second: the first one's include what is done once a connection.
pub(crate) async fn statements(
    database: &Database,
    server: &Kiln,
    token: &str,
    body: &'static str,
) -> anyhow::Result<Captured> {
    #[derive(Deserialize)]
    struct Build {
        id: String,
    }
    let client = reqwest::Client::new();
    let post = async || -> anyhow::Result<(String, usize)> {
        let request = client.post(format!("{}/v1/builds", server.base)).bearer_auth(token);
        let request = request.header("content-type", "application/json").body(body);
        let answer = request.send().await?.error_for_status()?.bytes().await?;
        Ok((serde_json::from_slice::<Build>(&answer)?.id, answer.len()))
    };
    let (first, _) = post().await?;
    let (id, answer_bytes) = post().await?;

    let name = database.url.path().trim_start_matches('/');
    let deadline = Instant::now() + LIMIT;
    loop {
        let logged = logged(database, name).await?;
        let stores = |id: &str| {
            let names = |parameter: &String| times_named(parameter, id) > 0;
            let of_it = |statement: &Statement| statement.parameters.iter().any(names);
            logged.iter().position(of_it)
        };
        if let (Some(first), Some(second)) = (stores(&first), stores(&id)) {
            let statements: Vec<Statement> = logged
                .into_iter()
                .skip(first + 1)
                .take(second - first)
                // Hints between replicas go out a few times a second, however many requests there are, and a connection
                // is set up once.
                .filter(|statement| !statement.text.contains("pg_notify") && !statement.text.starts_with("SET "))
                .collect();
            return Ok(Captured {
                statements,
                id,
                answer_bytes,
            });
        }
        if Instant::now() > deadline {
            bail!("Postgres did not log the request's statements; is logging_collector on?");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How often an array that holds nothing else names the id, as a statement for any number of builds does.
pub(crate) fn times_named(parameter: &str, id: &str) -> usize {
    let elements = parameter.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    let elements: Vec<_> = elements.into_iter().flat_map(|list| list.split(',')).collect();
    if elements.iter().all(|element| *element == id) {
        elements.len()
    } else {
        0
    }
}

async fn logged(database: &Database, name: &str) -> anyhow::Result<Vec<Statement>> {
    let mut connection = PgConnection::connect(database.url.as_str()).await?;
    let log: String = sqlx::query_scalar("SELECT pg_read_file(pg_current_logfile('jsonlog'))")
        .fetch_one(&mut connection)
        .await
        .context("reading the log of Postgres, which has to be the one that scripts/bench.sh starts")?;
    Ok(log
        .lines()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok())
        .filter(|line| line.dbname.as_deref() == Some(name))
        .filter_map(|line| Statement::of(&line))
        .collect())
}

/// Reads `parameters: $1 = 'it''s', $2 = NULL`.
fn parameters(detail: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = detail;
    while let Some((_, after)) = rest.split_once(" = ") {
        let Some(quoted) = after.strip_prefix('\'') else {
            found.push("NULL".to_owned());
            rest = after;
            continue;
        };
        let mut value = String::new();
        let mut characters = quoted.char_indices().peekable();
        rest = "";
        while let Some((at, character)) = characters.next() {
            if character != '\'' {
                value.push(character);
            } else if characters.next_if(|(_, next)| *next == '\'').is_some() {
                value.push('\'');
            } else {
                rest = &quoted[at + 1..];
                break;
            }
        }
        found.push(value);
    }
    found
}
