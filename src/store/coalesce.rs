//! Identical requests that share one build. A unique index decides which of them is the first.

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;

use super::Error;
use crate::domain::{id::BuildId, project::ProjectName};

/// What makes two requests identical.
pub(super) type Fingerprint = [u8; 32];

/// SHA-256 of the project and the specification, defaults filled in. Notes aren't part of it: they change nothing of what
/// is built.
pub(super) fn fingerprint(project: &ProjectName, spec: &Value) -> Fingerprint {
    let mut spec = spec.clone();
    if let Some(fields) = spec.as_object_mut() {
        fields.remove("annotations");
    }
    let mut hash = Sha256::new();
    hash.update(project.as_str());
    hash.update([0]);
    hash.update(spec.to_string());
    hash.finalize().into()
}

/// The build in flight that identical requests share.
pub(super) async fn in_flight(connection: &mut PgConnection, shared: &Fingerprint) -> Result<Option<BuildId>, Error> {
    let id = sqlx::query_scalar!(
        "SELECT id FROM builds WHERE coalesce_hash = $1 AND state IN ('queued', 'starting', 'running')",
        shared.as_slice(),
    )
    .fetch_optional(connection)
    .await?;
    Ok(id.map(BuildId))
}

/// Has nobody share a build any more of whose group a newer one is live. Whoever asks for the same again wants it to be
/// the newest. Needs the group's lock.
pub(super) async fn let_go_of_outdated(connection: &mut PgConnection, shared: &Fingerprint) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE builds SET coalesce_hash = NULL
         WHERE coalesce_hash = $1 AND state IN ('queued', 'starting', 'running') AND EXISTS (
             SELECT FROM builds newer
             WHERE newer.project = builds.project AND newer.group_key = builds.group_key
               AND newer.group_seq > builds.group_seq
               AND newer.state IN ('queued', 'starting', 'running', 'cancelling')
         )",
        shared.as_slice(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn notes_make_no_difference_and_everything_else_does() {
        let project = |name: &str| name.parse::<ProjectName>().expect("a name");
        let of = |name: &str, spec: Value| fingerprint(&project(name), &spec);
        let one = of("a", json!({"target": null, "annotations": {"delivery": 1}}));
        assert_eq!(one, of("a", json!({"target": null, "annotations": {"delivery": 2}})));
        assert_ne!(one, of("a", json!({"target": "x", "annotations": {"delivery": 1}})));
        assert_ne!(one, of("b", json!({"target": null, "annotations": {"delivery": 1}})));
    }
}
