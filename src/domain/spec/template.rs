//! Variables of a Dockerfile template.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Invalid;

/// Variables that a Dockerfile is rendered with: names to JSON values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, Value>", into = "BTreeMap<String, Value>")]
pub struct TemplateVars(BTreeMap<String, Value>);

impl TemplateVars {
    /// Most bytes of names and values together, as JSON. They travel inside the pod object.
    pub const MAX_BYTES: usize = 32 * 1024;

    /// Name → value.
    pub const fn values(&self) -> &BTreeMap<String, Value> {
        &self.0
    }

    /// Checks all variables and reports everything that is wrong, beside the name that it is about; what is about all
    /// of them has none.
    pub fn check(values: BTreeMap<String, Value>) -> Result<Self, Vec<(Option<String>, Invalid)>> {
        let mut problems = Vec::new();
        let mut bytes = 0;
        for (name, value) in &values {
            bytes += name.len() + value.to_string().len();
            if !is_identifier(name) {
                let detail = "the key: expected the name of a variable: letters, digits and `_`, not starting with a digit, at most 128 bytes";
                problems.push((Some(name.clone()), Invalid::new(detail)));
            }
            // The database can't hold it.
            if name.contains('\0') || super::request::has_nul(value) {
                let detail = "expected no NUL character anywhere inside";
                problems.push((Some(name.clone()), Invalid::new(detail)));
            }
        }
        if bytes > Self::MAX_BYTES {
            let detail = format!("expected at most {} bytes of JSON in all, got {bytes}", Self::MAX_BYTES);
            problems.push((None, Invalid::new(detail)));
        }
        if problems.is_empty() {
            Ok(Self(values))
        } else {
            Err(problems)
        }
    }
}

/// Whether a template can name it.
fn is_identifier(name: &str) -> bool {
    name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

impl TryFrom<BTreeMap<String, Value>> for TemplateVars {
    type Error = Invalid;

    fn try_from(values: BTreeMap<String, Value>) -> Result<Self, Self::Error> {
        Self::check(values).map_err(|problems| {
            let lines: Vec<String> = problems
                .into_iter()
                .map(|(name, problem)| name.map_or_else(|| problem.to_string(), |name| format!("`{name}`: {problem}")))
                .collect();
            Invalid::new(lines.join("; "))
        })
    }
}

impl From<TemplateVars> for BTreeMap<String, Value> {
    fn from(vars: TemplateVars) -> Self {
        vars.0
    }
}
