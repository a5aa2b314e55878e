//! What a build takes from a cache in a registry, and what it leaves there.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    Builder, ImageRef,
    reader::{Field, Reported},
};

/// Most references to take layers from.
const MAX_FROM: usize = 8;

/// A cache in a registry. One that isn't there or can't be written doesn't fail a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// Where to look for the results of steps.
    #[schema(value_type = Vec<String>)]
    pub from: Vec<ImageRef>,
    /// Where to leave them.
    #[schema(value_type = Option<String>)]
    pub to: Option<ImageRef>,
    /// Which to leave.
    pub mode: CacheMode,
}

/// Which results of steps are left in a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CacheMode {
    /// Those that are part of the image.
    #[default]
    Min,
    /// Those of all stages.
    Max,
}

/// What a request says about its cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheChoice {
    /// Nothing: what the project has.
    OfProject,
    /// `false`: none.
    None,
    /// This one.
    Some(Cache),
}

/// Reads the `cache` of a request.
pub(super) fn choice(field: &Field<'_>) -> Result<CacheChoice, Reported> {
    match field.value() {
        None => Ok(CacheChoice::OfProject),
        Some(Value::Bool(false)) => Ok(CacheChoice::None),
        Some(_) => cache(field).map(CacheChoice::Some),
    }
}

/// Reads a cache: an object, or a reference that stands for `from` and `to`.
pub fn cache(field: &Field<'_>) -> Result<Cache, Reported> {
    const MODES: [(&str, CacheMode); 2] = [("min", CacheMode::Min), ("max", CacheMode::Max)];
    match field.value() {
        Some(Value::String(_)) => {
            let reference = field.required::<ImageRef>()?;
            return Ok(Cache {
                from: vec![reference.clone()],
                to: Some(reference),
                mode: CacheMode::default(),
            });
        }
        Some(Value::Object(_)) => {}
        _ => {
            return Err(field.report(
                r#"expected a reference such as `registry.example/cache/app`, `{"from": ["registry.example/cache/app"], "to": "registry.example/cache/app", "mode": "min"}`, or in a request `false` for no cache"#,
            ));
        }
    }
    let object = field.object()?;
    let from = references(&object.field("from"));
    let to = object.field("to").parse::<ImageRef>();
    let mode = object.field("mode").one_of(&MODES);
    object.finish();
    Ok(Cache {
        from: from?,
        to: to?,
        mode: mode?.unwrap_or_default(),
    })
}

fn references(field: &Field<'_>) -> Result<Vec<ImageRef>, Reported> {
    let elements = field.elements()?.unwrap_or_default();
    if elements.len() > MAX_FROM {
        return Err(field.report(format!(
            "expected at most {MAX_FROM} references, got {}",
            elements.len()
        )));
    }
    let read: Vec<_> = elements.iter().map(Field::required::<ImageRef>).collect();
    read.into_iter().collect()
}

impl Cache {
    /// What keeps a builder from using it, in words for whoever asked.
    pub fn unsupported(&self, builder: Builder) -> Option<&'static str> {
        match builder {
            Builder::Buildah if self.from.len() > 1 => {
                Some("buildah takes one reference in `from`: leave out the others, or use the builder `buildkit`")
            }
            Builder::Buildah if self.from.iter().chain(&self.to).any(|cache| cache.tag() != "latest") => Some(
                "buildah gives the tags of a cache itself: name the repositories without a tag, or use the builder `buildkit`",
            ),
            Builder::Buildah | Builder::Buildkit => None,
        }
    }
}
