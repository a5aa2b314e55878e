//! The cluster's addresses, as `scripts/cluster/env.sh` writes them.

/// Kiln's configuration for the cluster, with names of variables in it.
const TEMPLATE: &str = include_str!("../../../deploy/kiln-cluster.toml.in");

/// A variable that describes the cluster.
pub(in crate::cluster) fn variable(name: &str) -> String {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => value,
        _ => panic!("{name} isn't set: run these tests with scripts/test-cluster.sh, after scripts/cluster/up.sh"),
    }
}

/// The configuration that `make cluster` writes for the user, made from the repository's template.
pub(super) fn configuration() -> toml::Table {
    let mut text = TEMPLATE.to_owned();
    for (name, value) in std::env::vars().filter(|(name, _)| name.starts_with("KILN_TEST_")) {
        text = text.replace(&format!("@{name}@"), &value);
    }
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains("@KILN_TEST_")).collect();
    lines.join("\n").parse().expect("the template is TOML")
}
