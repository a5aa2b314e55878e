//! Whether the secrets that a request names are there and fit. What becomes of them until the build is launched shows
//! then.

use crate::{
    domain::{
        project::ProjectName,
        secret::{Need, Purpose},
        spec::{BuildSpec, reader::FieldError},
    },
    store::{
        self,
        secrets::{Secret, Stored},
    },
};

/// Everything that is wrong with the secrets that are named. `listed` tells whether `registry_credentials` is a list.
pub(super) async fn check(
    pool: &sqlx::PgPool,
    project: &ProjectName,
    spec: &BuildSpec,
    listed: bool,
) -> Result<Vec<FieldError>, store::Error> {
    let needs = spec.needs();
    if needs.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<_> = needs.iter().map(|need| need.name).collect();
    let stored = store::secrets::named(pool, project, &names).await?;
    let find = |need: &Need<'_>| {
        let found = stored.iter().find(|stored| stored.secret.name == *need.name);
        found.map(|Stored { secret, .. }| secret)
    };
    let mut errors = Vec::new();
    for (index, need) in needs.iter().enumerate() {
        let mut report = |detail: String| {
            errors.push(FieldError {
                pointer: need.pointer(listed),
                detail,
            });
        };
        let (name, kind) = (need.name, need.kind());
        let Some(secret) = find(need) else {
            report(format!(
                "project `{project}` has no secret `{name}`: store it with `PUT /v1/projects/{project}/secrets/{name}`, or correct the name"
            ));
            continue;
        };
        if secret.kind != kind {
            report(format!(
                "`{name}` is a secret of kind `{}`: expected one of kind `{kind}`",
                secret.kind
            ));
        } else if let Some(objection) = need.objection(spec, secret.form) {
            report(objection);
        } else if let Some(other) = needs[..index]
            .iter()
            .filter_map(find)
            .find(|other| same_registry(need, secret, other))
        {
            report(format!(
                "`{name}` is for the same registry as `{}`: give one for each registry",
                other.name
            ));
        }
    }
    Ok(errors)
}

fn same_registry(need: &Need<'_>, secret: &Secret, other: &Secret) -> bool {
    matches!(need.purpose, Purpose::Registry(_)) && secret.registry.is_some() && secret.registry == other.registry
}
