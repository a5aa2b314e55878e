//! Settings of a benchmark come from the environment, each with a default that ends soon.

use std::{env, str::FromStr};

use anyhow::{Context as _, anyhow};

/// The variable's value, or the default when it isn't set.
pub(crate) fn setting<T: FromStr>(name: &str, default: T) -> anyhow::Result<T> {
    match env::var(name) {
        Ok(text) => text
            .parse()
            .map_err(|_| anyhow!("{name}={text}: expected a value such as the default, see docs/benchmarks.md")),
        Err(_) => Ok(default),
    }
}

/// A variable that has no default.
pub(crate) fn required(name: &str, what: &str) -> anyhow::Result<String> {
    env::var(name).with_context(|| format!("{name} ({what}) isn't set: run scripts/bench.sh, which sets it"))
}
