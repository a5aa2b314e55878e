//! Kiln's configuration for the test cluster, with what a benchmark changes.

use std::fs;

use anyhow::Context as _;
use toml::{Table, Value};
use url::Url;

use super::setting::required;

/// The configuration that `KILN_CONFIG` names, with `changes` (TOML) laid over it.
pub(crate) fn configuration(database: &Url, installation: &str, changes: &str) -> anyhow::Result<Table> {
    let file = required("KILN_CONFIG", "Kiln's configuration for the cluster")?;
    let text = fs::read_to_string(&file).with_context(|| file.clone())?;
    let mut configuration: Table = text.parse().context(file)?;
    let ours = format!("[database]\nurl = \"{database}\"\n[kubernetes]\ninstallation = \"{installation}\"\n");
    lay_over(&mut configuration, ours.parse()?);
    lay_over(&mut configuration, changes.parse()?);
    Ok(configuration)
}

/// The namespace that the builds' pods go to.
pub(crate) fn namespace(configuration: &Table) -> &str {
    let kubernetes = configuration.get("kubernetes").and_then(Value::as_table);
    let namespace = kubernetes.and_then(|kubernetes| kubernetes.get("namespace"));
    namespace.and_then(Value::as_str).unwrap_or("kiln-builds")
}

fn lay_over(base: &mut Table, changes: Table) {
    for (key, change) in changes {
        match (base.get_mut(&key), change) {
            (Some(Value::Table(base)), Value::Table(change)) => lay_over(base, change),
            (_, change) => {
                base.insert(key, change);
            }
        }
    }
}
