//! `/v1/projects/{project}/hooks`.

pub(in crate::http) mod create;
pub(in crate::http) mod delete;
pub(in crate::http) mod deliveries;
pub(in crate::http) mod get;
pub(in crate::http) mod list;
pub(in crate::http) mod rotate;
pub(in crate::http) mod update;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    domain::{
        hook::{EventKind, Forge, HookDefinition, HookId, HookName, HookSecret, Rules, Supersede},
        project::ProjectName,
        spec::reader::FieldError,
    },
    http::{
        builds::accept,
        error::{ApiError, Missing},
        state::App,
    },
    store::{self, hooks::Hook, secrets::seal::HookPlace, secrets::seal::Sealed},
};

/// A hook, without its secret.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Hook)]
pub(in crate::http) struct HookView {
    /// Its id.
    id: Uuid,
    /// The project that owns it, and its builds.
    project: ProjectName,
    /// What it is called.
    name: HookName,
    /// Who sends.
    forge: Forge,
    /// The address to enter at the forge.
    url: String,
    #[serde(flatten)]
    rules: Rules,
    /// The secrets that are good, newest first.
    secrets: Vec<SecretView>,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// When it was last changed.
    updated_at: DateTime<Utc>,
}

/// A secret of a hook, without itself.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HookSecret)]
struct SecretView {
    /// When it was made.
    created_at: DateTime<Utc>,
    /// When it stops being good; null for the newest.
    expires_at: Option<DateTime<Utc>>,
}

/// A hook with a secret that is shown this once.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct HookWithSecret {
    #[serde(flatten)]
    hook: HookView,
    /// The secret to enter at the forge. It is shown here once and can't be had again.
    #[schema(example = "whsec_…")]
    secret: String,
}

impl HookView {
    fn new(app: &App, hook: Hook) -> Self {
        Self {
            id: hook.id.0,
            project: hook.project,
            name: hook.definition.name,
            forge: hook.definition.forge,
            url: app.link(&format!("/hooks/{}", hook.id)),
            rules: hook.definition.rules,
            secrets: hook
                .secrets
                .iter()
                .map(|shared| SecretView {
                    created_at: shared.created_at,
                    expires_at: shared.expires_at,
                })
                .collect(),
            created_at: hook.created_at,
            updated_at: hook.updated_at,
        }
    }
}

/// A hook to be made, or what to change of one: fields that are left out are as they are by default, or stay.
#[derive(ToSchema)]
#[schema(as = HookRequest)]
#[expect(dead_code, reason = "only described, never made")]
struct HookRequest {
    /// What to call it: one line of 1 to 100 characters.
    name: HookName,
    /// Who sends. It can't be changed.
    forge: Forge,
    /// The kinds of events that are wanted; `push`, `tag`, `image` and `manual` as far as the sender has them when absent.
    events: Option<Vec<EventKind>>,
    /// Patterns of repositories' full names; all when absent.
    repositories: Option<Vec<String>>,
    /// Patterns of branches; all when absent.
    branches: Option<Vec<String>>,
    /// Patterns of tags; all when absent.
    tags: Option<Vec<String>>,
    /// `include` and `exclude`: patterns of changed files.
    #[schema(value_type = Option<Object>)]
    paths: (),
    /// What in a commit's message keeps it from being built.
    skip_markers: Option<Vec<String>>,
    /// Whether pull requests from other repositories are built; false when absent.
    forks: Option<bool>,
    /// Which older builds of the same ref a new one takes the place of; `no` when absent.
    supersede: Option<Supersede>,
    /// A request for a build as `POST /v1/builds` takes it, with variables such as `{{short_sha}}`; or a list of them.
    #[schema(value_type = Object, example = json!({"images": ["registry.example/team/app:{{short_sha}}"]}))]
    build: Value,
}

/// The hook of this id, if the project has it.
async fn existing(app: &App, project: &ProjectName, id: HookId) -> Result<Hook, ApiError> {
    store::hooks::get(&app.pool, id)
        .await?
        .filter(|hook| hook.project == *project)
        .ok_or(ApiError::NotFound(Missing::Hook))
}

/// Reads a hook, and looks whether the secrets are there that its builds name.
async fn definition(app: &App, project: &ProjectName, document: &Value) -> Result<HookDefinition, ApiError> {
    let definition = HookDefinition::read(document, &app.limits).map_err(ApiError::InvalidBody)?;
    let mut errors = Vec::new();
    for tried in definition.tried(&app.limits) {
        let checked = match accept::can_be_fetched(&tried.spec.source, app) {
            Ok(()) => accept::check_secrets(app, project, &tried.spec, tried.listed, None).await,
            refused => refused,
        };
        match checked {
            Ok(()) => {}
            Err(ApiError::InvalidBody(unfit)) => errors.extend(unfit.into_iter().map(|error| FieldError {
                pointer: format!("{}{}", tried.pointer, error.pointer),
                detail: error.detail,
            })),
            Err(other) => return Err(other),
        }
    }
    if errors.is_empty() {
        Ok(definition)
    } else {
        Err(ApiError::InvalidBody(errors))
    }
}

/// Makes a secret for a hook.
fn new_secret(app: &App, hook: HookId, number: i32) -> Result<(HookSecret, Sealed), ApiError> {
    let secret = HookSecret::from_random(app.random.bytes());
    let place = HookPlace { hook, number };
    let sealed = app
        .keyring
        .seal(app.random.bytes(), place, secret.expose().as_bytes())
        .map_err(ApiError::Seal)?;
    Ok((secret, sealed))
}
