//! `kiln build` and `kiln retry`.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Session;
use crate::{
    client::{
        args::{Build, Pair, Retry},
        context::Context,
        error::{ClientError, Exit},
        follow::What,
        git_url::Place,
        interrupt::Interrupts,
        screen::{FAINT, Output, styled},
        upload,
        watch::{Attended, Watch, conclude, read_build},
    },
    domain::project::ProjectName,
};

/// `kiln build`.
pub(in crate::client) async fn build(flags: Build) -> Result<Exit, ClientError> {
    let mut session = Session::open(&flags.common)?;
    let (source, dockerfile) = source(&mut session, &flags).await?;
    let request = request(
        &flags,
        source,
        dockerfile.as_deref(),
        session.settings.project.as_ref().map(ProjectName::as_str),
    );
    let mut interrupts = Interrupts::listen()?;
    // Known to this command only: whatever happens to the connection, there is one build.
    let key = format!("kiln-build-{}", Uuid::new_v4());
    let document = session.api.post_once(&["v1", "builds"], &key, &request).await?;
    attend(&mut session, &mut interrupts, document, flags.detach).await
}

/// `kiln retry`.
pub(in crate::client) async fn retry(flags: Retry) -> Result<Exit, ClientError> {
    let mut session = Session::open(&flags.common)?;
    let mut interrupts = Interrupts::listen()?;
    let key = format!("kiln-retry-{}", Uuid::new_v4());
    let id = flags.id.to_string();
    let document = session
        .api
        .post_once(&["v1", "builds", &id, "retry"], &key, &Value::Null)
        .await?;
    attend(&mut session, &mut interrupts, document, flags.detach).await
}

/// Follows a build that was just made, unless that isn't wanted.
async fn attend(
    session: &mut Session,
    interrupts: &mut Interrupts,
    document: Value,
    detach: bool,
) -> Result<Exit, ClientError> {
    let build = read_build(&session.api, &document)?;
    let id = build.id.to_string();
    if detach {
        let text = if session.json { document.to_string() } else { id };
        session.screen.print(&format!("{text}\n"))?;
        return Ok(Exit::Success);
    }
    let announced = styled(FAINT, &format!("kiln: build {id} in project {}", build.project));
    session.screen.say(&announced)?;
    let watch = Watch {
        api: &session.api,
        screen: &mut session.screen,
        id,
        what: What::Events,
        after: 0,
        known: true,
        events_as_json: false,
        output: if session.json { Output::Error } else { Output::Out },
    };
    match watch.attend(interrupts).await? {
        Attended::Detached => Ok(Exit::Interrupted),
        Attended::Over(build, document) => {
            let exit = conclude(&mut session.screen, &build)?;
            if session.json {
                session.screen.print(&format!("{document}\n"))?;
            }
            Ok(exit)
        }
    }
}

/// The request's `source` and `dockerfile`. A folder is sent to the service on the way.
async fn source(session: &mut Session, flags: &Build) -> Result<(Value, Option<String>), ClientError> {
    let place = Place::parse(&flags.source);
    let in_context = || match &flags.file {
        Some(path) => match path.to_str() {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(ClientError::usage("the Dockerfile's name is not UTF-8")),
        },
        None => Ok(None),
    };
    let only_git = |what: bool, flag: &str| {
        let text = format!("{flag} is for a git URL, which `{}` is not", flags.source);
        if what { Err(ClientError::Usage(text)) } else { Ok(()) }
    };
    if !matches!(place, Place::Git(_)) {
        only_git(flags.submodules, "--submodules")?;
    }
    if flags.sha256.is_some() && !matches!(place, Place::Archive(_)) {
        return Err(ClientError::usage("--sha256 is for the URL of a tar archive"));
    }
    match place {
        Place::Folder(folder) => {
            only_git(flags.git_credentials.is_some(), "--git-credentials")?;
            let context = Context::read(Path::new(&folder), flags.file.as_deref())?;
            let dockerfile = context.dockerfile.clone();
            Ok((upload::send(session, context).await?, Some(dockerfile)))
        }
        Place::Git(git) => {
            let source = json!({
                "type": "git", "url": git.url, "ref": git.reference, "commit": git.commit,
                "subdir": git.subdir, "submodules": flags.submodules, "credentials": flags.git_credentials,
            });
            Ok((source, in_context()?))
        }
        Place::Archive(url) => {
            let Some(sha256) = &flags.sha256 else {
                return Err(ClientError::usage(
                    "a tar archive's URL needs --sha256 with its digest, so that what is built is what you looked at",
                ));
            };
            let source = json!({
                "type": "archive", "url": url, "sha256": sha256.trim_start_matches("sha256:"),
                "credentials": flags.git_credentials,
            });
            Ok((source, in_context()?))
        }
    }
}

fn map(pairs: &[Pair]) -> BTreeMap<&str, &str> {
    pairs
        .iter()
        .map(|Pair(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

/// The request. What no flag sets is left out, so that the service's defaults hold.
fn request(flags: &Build, source: Value, dockerfile: Option<&str>, project: Option<&str>) -> Value {
    let mut request = Map::new();
    let mut set = |field: &str, value: Value| {
        let empty = match &value {
            Value::Null => true,
            Value::Array(values) => values.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        if !empty {
            request.insert(field.to_owned(), value);
        }
    };
    set("project", json!(project));
    set("source", source);
    set("dockerfile", json!(dockerfile));
    set("images", json!(flags.tags));
    if flags.no_push {
        set("push", json!(false));
    }
    set("build_args", json!(map(&flags.build_args)));
    set("secrets", json!(map(&flags.secrets)));
    set("ssh", json!(flags.ssh));
    set("target", json!(flags.target));
    set("platforms", json!(flags.platforms));
    set("labels", json!(map(&flags.labels)));
    set("template", json!(map(&flags.template)));
    set("builder", json!(flags.builder));
    set("registry_credentials", json!(flags.registry_credentials));
    let resources: Map<String, Value> = [("cpu", &flags.cpu), ("memory", &flags.memory), ("disk", &flags.disk)]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?))))
        .collect();
    set("resources", Value::Object(resources));
    if flags.no_cache {
        set("cache", json!(false));
    } else if !flags.cache_from.is_empty() || flags.cache_to.is_some() {
        set("cache", json!({"from": flags.cache_from, "to": flags.cache_to}));
    }
    set("timeout_seconds", json!(flags.timeout.map(|timeout| timeout.as_secs())));
    set("priority", json!(flags.priority));
    set("annotations", json!(map(&flags.annotations)));
    Value::Object(request)
}
