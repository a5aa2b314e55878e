//! `kiln secret …`. A value comes from a file or from standard input: flags can be seen by every user of the machine, and
//! shells remember them.

use std::{
    fs,
    io::{self, IsTerminal as _, Read as _},
    path::Path,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use chrono::Utc;
use reqwest::Method;
use serde_json::{Value, json, value::RawValue};

use super::Session;
use crate::client::{
    args::{Common, SecretDelete, SecretKind, SecretSet},
    error::{ClientError, Exit},
    text::{age, table, width},
    wire::{Items, Secret},
};

/// `kiln secret set`.
pub(in crate::client) async fn set(flags: SecretSet) -> Result<Exit, ClientError> {
    let body = body(&flags, read)?;
    let mut session = Session::open(&flags.common)?;
    let project = session.api.project(&session.settings).await?;
    let request = session
        .api
        .request(Method::PUT, &["v1", "projects", &project, "secrets", &flags.name]);
    let document: Box<RawValue> = session.api.json(request.json(&body)).await?;
    if session.json {
        session.document(&document)?;
    } else {
        let text = format!("kiln: secret {} is stored in project {project}", flags.name);
        session.screen.say(&text)?;
    }
    Ok(Exit::Success)
}

/// What is stored. `read` gives a file's content.
fn body(flags: &SecretSet, mut read: impl FnMut(&Path) -> Result<Vec<u8>, ClientError>) -> Result<Value, ClientError> {
    let only = |given: bool, flag: &str, kind: &str| {
        let text = format!("{flag} is for secrets of the kind {kind}");
        if given { Err(ClientError::Usage(text)) } else { Ok(()) }
    };
    only(
        flags.registry.is_some() && flags.kind != SecretKind::Registry,
        "--registry",
        "registry",
    )?;
    only(
        flags.known_hosts.is_some() && flags.kind != SecretKind::Git,
        "--known-hosts",
        "git",
    )?;
    only(
        flags.username.is_some() && flags.kind == SecretKind::Build,
        "--username",
        "registry or git",
    )?;
    let data = match (flags.kind, &flags.username, &flags.known_hosts) {
        (SecretKind::Build, ..) => match String::from_utf8(read(&flags.from)?) {
            Ok(value) => json!({"value": value}),
            Err(error) => json!({"value_base64": BASE64_STANDARD.encode(error.into_bytes())}),
        },
        (SecretKind::Registry, Some(username), _) => {
            let Some(registry) = &flags.registry else {
                return Err(ClientError::usage(
                    "a registry's secret needs its host: --registry registry.example",
                ));
            };
            json!({"registry": registry, "username": username, "password": word(read(&flags.from)?)?})
        }
        (SecretKind::Registry, None, _) => {
            return Err(ClientError::usage("a registry's secret needs a user: --username"));
        }
        (SecretKind::Git, Some(username), _) => json!({"username": username, "password": word(read(&flags.from)?)?}),
        (SecretKind::Git, None, Some(hosts)) => {
            json!({"ssh_private_key": text(read(&flags.from)?)?, "known_hosts": text(read(hosts)?)?})
        }
        (SecretKind::Git, None, None) => json!({"token": word(read(&flags.from)?)?}),
    };
    let kind = match flags.kind {
        SecretKind::Build => "build",
        SecretKind::Registry => "registry",
        SecretKind::Git => "git",
    };
    Ok(json!({"kind": kind, "data": data}))
}

fn text(bytes: Vec<u8>) -> Result<String, ClientError> {
    String::from_utf8(bytes).map_err(|_| ClientError::usage("the value is not text (UTF-8)"))
}

/// A password or token, without the line break that editors and `echo` put behind it.
fn word(bytes: Vec<u8>) -> Result<String, ClientError> {
    let text = text(bytes)?;
    let word = text.strip_suffix('\n').unwrap_or(&text);
    Ok(word.strip_suffix('\r').unwrap_or(word).to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>, ClientError> {
    if path.as_os_str() != "-" {
        return fs::read(path).map_err(|error| ClientError::file(path, &error));
    }
    let mut stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(ClientError::usage(
            "the value comes from a file or a pipe: name a file with --from, or write `… | kiln secret set …`",
        ));
    }
    let mut bytes = Vec::new();
    let read = stdin.read_to_end(&mut bytes);
    read.map_err(|error| ClientError::file(Path::new("standard input"), &error))?;
    Ok(bytes)
}

/// `kiln secret list`.
pub(in crate::client) async fn list(common: &Common) -> Result<Exit, ClientError> {
    let mut session = Session::open(common)?;
    let project = session.api.project(&session.settings).await?;
    let request = session.api.get(&["v1", "projects", &project, "secrets"]);
    let document: Box<RawValue> = session.api.json(request).await?;
    if session.json {
        session.document(&document)?;
        return Ok(Exit::Success);
    }
    let secrets: Items<Secret> = serde_json::from_str(document.get()).map_err(|error| ClientError::NotKiln {
        url: session.api.url().clone(),
        what: error.to_string(),
    })?;
    if secrets.items.is_empty() {
        session.screen.say(&format!("kiln: no secrets in project {project}"))?;
        return Ok(Exit::Success);
    }
    let now = Utc::now();
    let rows = secrets.items.into_iter().map(|secret| {
        let registry = secret.registry.unwrap_or_else(|| "-".to_owned());
        vec![secret.name, secret.kind, registry, age(secret.updated_at, now)]
    });
    let text = table(&["NAME", "KIND", "REGISTRY", "SET"], rows.collect(), width());
    session.screen.print(&text)?;
    Ok(Exit::Success)
}

/// `kiln secret delete`.
pub(in crate::client) async fn delete(flags: SecretDelete) -> Result<Exit, ClientError> {
    let mut session = Session::open(&flags.common)?;
    let project = session.api.project(&session.settings).await?;
    let request = session
        .api
        .request(Method::DELETE, &["v1", "projects", &project, "secrets", &flags.name]);
    session.api.send(request).await?;
    session.screen.say(&format!("kiln: secret {} is deleted", flags.name))?;
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(kind: SecretKind) -> SecretSet {
        SecretSet {
            name: "x".to_owned(),
            kind,
            from: "-".into(),
            registry: None,
            username: None,
            known_hosts: None,
            common: Common::default(),
        }
    }

    fn of(flags: &SecretSet, value: &[u8]) -> Result<Value, ClientError> {
        body(flags, |path| {
            Ok(if path == Path::new("-") {
                value.to_owned()
            } else {
                b"hosts\n".to_vec()
            })
        })
    }

    #[test]
    fn each_kind_has_its_form() {
        let build = flags(SecretKind::Build);
        assert_eq!(
            of(&build, b"a\n").expect("fits"),
            json!({"kind": "build", "data": {"value": "a\n"}})
        );
        assert_eq!(
            of(&build, b"\xff").expect("fits")["data"],
            json!({"value_base64": "/w=="})
        );
        let mut git = flags(SecretKind::Git);
        assert_eq!(of(&git, b"t\r\n").expect("fits")["data"], json!({"token": "t"}));
        git.username = Some("me".to_owned());
        assert_eq!(
            of(&git, b"p\n\n").expect("fits")["data"],
            json!({"username": "me", "password": "p\n"})
        );
        git.username = None;
        git.known_hosts = Some("hosts".into());
        assert_eq!(
            of(&git, b"key\n").expect("fits")["data"],
            json!({"ssh_private_key": "key\n", "known_hosts": "hosts\n"})
        );
        let mut registry = flags(SecretKind::Registry);
        assert!(of(&registry, b"p").is_err());
        registry.username = Some("me".to_owned());
        assert!(of(&registry, b"p").is_err());
        registry.registry = Some("registry.example".to_owned());
        assert_eq!(
            of(&registry, b"p\n").expect("fits"),
            json!({"kind": "registry", "data": {"registry": "registry.example", "username": "me", "password": "p"}})
        );
    }

    #[test]
    fn flags_of_another_kind_are_refused() {
        let mut build = flags(SecretKind::Build);
        build.username = Some("me".to_owned());
        assert!(of(&build, b"x").is_err());
        let mut git = flags(SecretKind::Git);
        git.registry = Some("registry.example".to_owned());
        assert!(of(&git, b"x").is_err());
        assert!(of(&flags(SecretKind::Git), b"\xff").is_err());
    }
}
