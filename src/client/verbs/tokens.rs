//! `kiln token …` by the API.

use chrono::{TimeDelta, Utc};
use serde_json::{json, value::RawValue};

use super::Session;
use crate::client::{
    args::{Common, TokenDelete, TokenRequest},
    error::{ClientError, Exit},
    text::{age, table, width},
    wire::{Items, NewToken, Token},
};

/// `kiln token create --api`: prints the token and nothing else, so that scripts can take it.
pub(in crate::client) async fn create(common: &Common, request: TokenRequest) -> Result<Exit, ClientError> {
    let mut session = Session::open(common)?;
    let project = session.api.project(&session.settings).await?;
    let expires_at = request
        .expires_in_days
        .map(|days| Utc::now() + TimeDelta::days(days.into()));
    let body = json!({"name": request.name, "scopes": request.scopes, "expires_at": expires_at});
    let call = session.api.post(&["v1", "projects", &project, "tokens"]).json(&body);
    let document: Box<RawValue> = session.api.json(call).await?;
    if session.json {
        session.document(&document)?;
    } else {
        let made: NewToken = serde_json::from_str(document.get()).map_err(|error| not_kiln(&session, &error))?;
        session.screen.print(&format!("{}\n", made.token))?;
    }
    Ok(Exit::Success)
}

fn not_kiln(session: &Session, error: &serde_json::Error) -> ClientError {
    ClientError::NotKiln {
        url: session.api.url().clone(),
        what: error.to_string(),
    }
}

/// `kiln token list`.
pub(in crate::client) async fn list(common: &Common) -> Result<Exit, ClientError> {
    let mut session = Session::open(common)?;
    let project = session.api.project(&session.settings).await?;
    let document: Box<RawValue> = session
        .api
        .json(session.api.get(&["v1", "projects", &project, "tokens"]))
        .await?;
    if session.json {
        session.document(&document)?;
        return Ok(Exit::Success);
    }
    let tokens: Items<Token> = serde_json::from_str(document.get()).map_err(|error| not_kiln(&session, &error))?;
    let now = Utc::now();
    let rows = tokens.items.into_iter().map(|token| {
        let expires = match token.expires_at {
            Some(time) if time <= now => "expired".to_owned(),
            Some(time) => time.format("%F").to_string(),
            None => "never".to_owned(),
        };
        vec![
            token.id.to_string(),
            token.name,
            token.scopes.join(","),
            age(token.created_at, now),
            expires,
        ]
    });
    let text = table(&["ID", "NAME", "SCOPES", "AGE", "EXPIRES"], rows.collect(), width());
    session.screen.print(&text)?;
    Ok(Exit::Success)
}

/// `kiln token delete`.
pub(in crate::client) async fn delete(flags: TokenDelete) -> Result<Exit, ClientError> {
    let mut session = Session::open(&flags.common)?;
    let project = session.api.project(&session.settings).await?;
    let id = flags.id.to_string();
    let request = session
        .api
        .request(reqwest::Method::DELETE, &["v1", "projects", &project, "tokens", &id]);
    session.api.send(request).await?;
    session.screen.say(&format!("kiln: token {id} is deleted"))?;
    Ok(Exit::Success)
}
