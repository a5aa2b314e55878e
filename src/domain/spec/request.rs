//! From the JSON of `POST /v1/builds` to a [`BuildSpec`]. Every field is read by the type that can't hold a bad value,
//! and all that is wrong is reported at once.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    ArchiveUrl, BuildArgName, BuildArgValue, BuildSpec, Builder, CommitId, DockerfilePath, GitRef, GitUrl, ImageRef,
    InlineFiles, LabelKey, LabelValue, Limits, Platform, RelPath, Resources, Sha256Hex, Source, TemplateVars,
    cache::{self, CacheChoice},
    group,
    reader::{Errors, Field, FieldError, Object, Reported},
};
use crate::domain::{
    id::UploadId,
    project::ProjectName,
    secret::{self, SecretMountId, SecretName},
};

/// A request that can be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildRequest {
    /// Who is to own the build; the caller's own project when absent.
    pub project: Option<ProjectName>,
    /// What to build.
    pub spec: BuildSpec,
    /// Whether the build is to have the cache that its project has.
    pub projects_cache: bool,
    /// Whether an identical request in flight may be answered with the same build.
    pub coalesce: bool,
}

impl BuildRequest {
    /// Reads a request, with the installation's defaults where it is silent. The error names every invalid field.
    pub fn read(document: &Value, limits: &Limits) -> Result<Self, Vec<FieldError>> {
        let errors = Errors::default();
        let request = Object::document(document, &errors).and_then(|root| read(root, limits));
        errors.finish(request)
    }
}

fn read(root: Object<'_>, limits: &Limits) -> Result<BuildRequest, Reported> {
    let project = root.field("project").parse();
    let source = source(&root.field("source"));
    let dockerfile_field = root.field("dockerfile");
    let dockerfile = dockerfile(&dockerfile_field).and_then(|path| match &source {
        Ok(Source::Inline { files }) if !holds(files, &path) => Err(dockerfile_field.report(format!(
            "`{path}` is not among the files of the source: add it to `source.files`, or name the one that is there"
        ))),
        _ => Ok(path),
    });
    let template = template(&root.field("template"));
    let build_args = build_args(&root.field("build_args"), limits);
    let target = root.field("target").parse();
    let platforms = platforms(&root.field("platforms"), limits);
    let labels = labels(&root.field("labels"), limits);
    let push = root.field("push").boolean().map(|push| push.unwrap_or(true));
    // Whoever sends a bad `push` gets no second error about `images`.
    let images = images(&root.field("images"), limits, push.unwrap_or(false));
    let registry_credentials = registry_credentials(&root.field("registry_credentials"));
    let secrets = secrets(&root.field("secrets"));
    let ssh = root.field("ssh").parse();
    let cache_field = root.field("cache");
    let builder = builder(&root.field("builder"), limits);
    let cache = cache::choice(&cache_field).and_then(|choice| match (&choice, &builder) {
        (CacheChoice::Some(cache), Ok(builder)) => match cache.unsupported(*builder) {
            Some(words) => Err(cache_field.report(words)),
            None => Ok(choice),
        },
        _ => Ok(choice),
    });
    let resources = resources(&root.field("resources"), limits);
    let timeout_seconds = timeout(&root.field("timeout_seconds"), limits);
    let priority = root.field("priority").integer(i16::MIN.into(), i16::MAX.into());
    let group = group::read(&root.field("group"));
    let coalesce = root.field("coalesce").boolean();
    let annotations = annotations(&root.field("annotations"), limits);
    root.finish();

    let cache = cache?;
    let (source, dockerfile) = (source?, dockerfile?);
    Ok(BuildRequest {
        project: project?,
        coalesce: coalesce?.unwrap_or(false),
        projects_cache: cache == CacheChoice::OfProject,
        spec: BuildSpec {
            source,
            dockerfile,
            template: template?,
            build_args: build_args?,
            target: target?,
            platforms: platforms?,
            labels: labels?,
            images: images?,
            push: push?,
            registry_credentials: registry_credentials?,
            secrets: secrets?,
            ssh: ssh?,
            cache: match &cache {
                CacheChoice::Some(cache) => Some(cache.clone()),
                CacheChoice::OfProject | CacheChoice::None => None,
            },
            builder: builder?,
            resources: resources?,
            timeout_seconds: timeout_seconds?,
            // The range was checked.
            priority: priority?.map_or(0, |priority| i16::try_from(priority).unwrap_or(0)),
            group: group?,
            annotations: annotations?,
        },
    })
}

#[derive(Clone, Copy)]
enum SourceType {
    Git,
    Inline,
    Archive,
    Upload,
}

fn source(field: &Field<'_>) -> Result<Source, Reported> {
    const TYPES: [(&str, SourceType); 4] = [
        ("git", SourceType::Git),
        ("inline", SourceType::Inline),
        ("archive", SourceType::Archive),
        ("upload", SourceType::Upload),
    ];
    if field.value().is_none() {
        return Err(field.report(
            r#"required: expected an object such as `{"type": "git", "url": "https://git.example/team/app.git", "ref": "main"}`"#,
        ));
    }
    let source = field.object()?;
    let kind = source.field("type");
    let read = match kind.one_of(&TYPES) {
        Ok(Some(SourceType::Git)) => git(&source),
        Ok(Some(SourceType::Inline)) => inline(&source),
        Ok(Some(SourceType::Archive)) => archive(&source),
        Ok(Some(SourceType::Upload)) => upload(&source),
        other => {
            source.abandon();
            Err(other
                .err()
                .unwrap_or_else(|| kind.report("required: expected `git`, `inline`, `archive` or `upload`")))
        }
    };
    source.finish();
    read
}

fn git(source: &Object<'_>) -> Result<Source, Reported> {
    let url = source.field("url").required::<GitUrl>();
    let reference = source.field("ref").parse::<GitRef>();
    let commit = source.field("commit").parse::<CommitId>();
    let subdir = source.field("subdir").parse::<RelPath>();
    let submodules = source.field("submodules").boolean();
    let credentials = source.field("credentials").parse::<SecretName>();
    Ok(Source::Git {
        url: url?,
        reference: reference?,
        commit: commit?,
        subdir: subdir?.unwrap_or_else(RelPath::root),
        submodules: submodules?.unwrap_or(false),
        credentials: credentials?,
    })
}

fn archive(source: &Object<'_>) -> Result<Source, Reported> {
    let url = source.field("url").required::<ArchiveUrl>();
    let sha256 = source.field("sha256").required::<Sha256Hex>();
    let subdir = source.field("subdir").parse::<RelPath>();
    let credentials = source
        .field("credentials")
        .refuse("archives are fetched without credentials: use a signed link, or upload the archive; leave this out");
    credentials?;
    Ok(Source::Archive {
        url: url?,
        sha256: sha256?,
        subdir: subdir?.unwrap_or_else(RelPath::root),
    })
}

fn upload(source: &Object<'_>) -> Result<Source, Reported> {
    let id = source.field("id").required::<UploadId>();
    let subdir = source.field("subdir").parse::<RelPath>();
    Ok(Source::Upload {
        id: id?,
        subdir: subdir?.unwrap_or_else(RelPath::root),
    })
}

fn inline(source: &Object<'_>) -> Result<Source, Reported> {
    let files = source.field("files");
    let entries = files.entries()?;
    let mut texts = BTreeMap::new();
    let mut result = Ok(());
    for (path, file) in &entries {
        match file.required_text() {
            Ok(text) => {
                texts.insert((*path).to_owned(), text.to_owned());
            }
            Err(reported) => result = Err(reported),
        }
    }
    let complete = result.is_ok();
    match InlineFiles::check(texts) {
        Ok(files) => result.map(|()| Source::Inline { files }),
        Err(problems) => {
            // What is wrong with the lot is only worth saying when the lot was read.
            for (path, problem) in problems.into_iter().filter(|(path, _)| path.is_some() || complete) {
                let file = entries.iter().find(|(name, _)| path.as_deref() == Some(*name));
                result = Err(file.map_or(&files, |(_, file)| file).report(problem.0));
            }
            result.and_then(|()| Err(files.report("expected files")))
        }
    }
}

fn dockerfile(field: &Field<'_>) -> Result<DockerfilePath, Reported> {
    Ok(field.parse::<DockerfilePath>()?.unwrap_or_else(DockerfilePath::usual))
}

/// Whether the Dockerfile is among the files, whose folder is both the source's root and the context.
fn holds(files: &InlineFiles, dockerfile: &DockerfilePath) -> bool {
    let path = dockerfile.from_root().unwrap_or(dockerfile.as_str());
    path.parse()
        .is_ok_and(|path: RelPath| files.files().contains_key(&path))
}

fn template(field: &Field<'_>) -> Result<Option<TemplateVars>, Reported> {
    let Some(values) = field.map()? else { return Ok(None) };
    let entries = field.entries()?;
    let values = values
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    TemplateVars::check(values).map(Some).map_err(|problems| {
        let mut reported = None;
        for (name, problem) in problems {
            let entry = entries.iter().find(|(key, _)| name.as_deref() == Some(*key));
            reported = Some(entry.map_or(field, |(_, entry)| entry).report(problem.0));
        }
        reported.unwrap_or_else(|| field.report("expected variables"))
    })
}

/// Reads an object of checked keys to checked texts, at most `max` of them.
fn texts<K, V>(field: &Field<'_>, max: usize) -> Result<BTreeMap<K, V>, Reported>
where
    K: std::str::FromStr<Err = super::Invalid> + Ord,
    V: std::str::FromStr<Err = super::Invalid>,
{
    let entries = field.entries()?;
    let mut result = Ok(());
    if entries.len() > max {
        result = Err(field.report(format!("expected at most {max} entries, got {}", entries.len())));
    }
    let mut texts = BTreeMap::new();
    for (key, entry) in entries {
        let key = key
            .parse::<K>()
            .map_err(|problem| entry.report(format!("the key: {problem}")));
        match (key, entry.required::<V>()) {
            (Ok(key), Ok(value)) => {
                texts.insert(key, value);
            }
            (Err(reported), _) | (_, Err(reported)) => result = Err(reported),
        }
    }
    result.map(|()| texts)
}

fn build_args(field: &Field<'_>, limits: &Limits) -> Result<BTreeMap<BuildArgName, BuildArgValue>, Reported> {
    let args: BTreeMap<BuildArgName, BuildArgValue> = texts(field, limits.max_build_args)?;
    let bytes: usize = args
        .iter()
        .map(|(name, value)| name.as_str().len() + value.as_str().len())
        .sum();
    if bytes > limits.max_build_args_bytes {
        let max = limits.max_build_args_bytes;
        return Err(field.report(format!(
            "expected at most {max} bytes of names and values in all, got {bytes}"
        )));
    }
    Ok(args)
}

fn labels(field: &Field<'_>, limits: &Limits) -> Result<BTreeMap<LabelKey, LabelValue>, Reported> {
    texts(field, limits.max_labels)
}

fn platforms(field: &Field<'_>, limits: &Limits) -> Result<Vec<Platform>, Reported> {
    let Some(elements) = field.elements()? else {
        return Ok(limits.platforms.first().cloned().into_iter().collect());
    };
    let mut result = Ok(());
    if elements.len() != 1 {
        let got = elements.len();
        result = Err(field.report(format!(
            "expected exactly one platform, got {got}: this version of Kiln builds for one platform at a time"
        )));
    }
    let mut platforms = Vec::new();
    for element in elements {
        match element.required::<Platform>() {
            Ok(platform) if limits.platforms.contains(&platform) => platforms.push(platform),
            Ok(platform) => {
                let offered: Vec<_> = limits.platforms.iter().map(|offered| format!("`{offered}`")).collect();
                result = Err(element.report(format!(
                    "`{platform}` is not offered by this installation: expected {}",
                    offered.join(" or ")
                )));
            }
            Err(reported) => result = Err(reported),
        }
    }
    result.map(|()| platforms)
}

fn images(field: &Field<'_>, limits: &Limits, required: bool) -> Result<Vec<ImageRef>, Reported> {
    let elements = field.elements()?.unwrap_or_default();
    if elements.is_empty() && required {
        return Err(field.report(
            r#"required: expected at least one name such as `registry.example/team/app:1`; to build without pushing, set `"push": false`"#,
        ));
    }
    let mut result = Ok(());
    if elements.len() > limits.max_images {
        let max = limits.max_images;
        result = Err(field.report(format!("expected at most {max} names, got {}", elements.len())));
    }
    let mut seen = BTreeSet::new();
    let mut images = Vec::new();
    for element in elements {
        match element.required::<ImageRef>() {
            Ok(image) if seen.insert(image.clone()) => images.push(image),
            Ok(image) => result = Err(element.report(format!("`{image}` is there twice: give each name once"))),
            Err(reported) => result = Err(reported),
        }
    }
    result.map(|()| images)
}

/// One name, or a list of them.
fn registry_credentials(field: &Field<'_>) -> Result<Vec<SecretName>, Reported> {
    const MAX: usize = secret::Limits::REGISTRIES;
    match field.value() {
        None => return Ok(Vec::new()),
        Some(Value::String(_)) => return Ok(field.parse()?.into_iter().collect()),
        Some(Value::Array(_)) => {}
        Some(_) => {
            return Err(field.report("expected the name of a secret of kind `registry`, or a list of such names"));
        }
    }
    let elements = field.elements()?.unwrap_or_default();
    let mut result = Ok(());
    if elements.len() > MAX {
        result = Err(field.report(format!("expected at most {MAX} names, got {}", elements.len())));
    }
    let mut names = Vec::new();
    for element in elements {
        match element.required::<SecretName>() {
            Ok(name) if !names.contains(&name) => names.push(name),
            Ok(name) => result = Err(element.report(format!("`{name}` is there twice: give each name once"))),
            Err(reported) => result = Err(reported),
        }
    }
    result.map(|()| names)
}

fn secrets(field: &Field<'_>) -> Result<BTreeMap<SecretMountId, SecretName>, Reported> {
    texts(field, secret::Limits::MOUNTS)
}

fn builder(field: &Field<'_>, limits: &Limits) -> Result<Builder, Reported> {
    let offered: Vec<_> = limits
        .builders
        .iter()
        .map(|builder| (builder.as_str(), *builder))
        .collect();
    match (field.one_of(&offered)?, offered.first()) {
        (Some(builder), _) | (None, Some(&(_, builder))) => Ok(builder),
        (None, None) => Err(field.report("this installation offers no builder")),
    }
}

fn resources(field: &Field<'_>, limits: &Limits) -> Result<Resources, Reported> {
    fn one<T>(field: &Field<'_>, default: T, max: &T) -> Result<T, Reported>
    where
        T: std::str::FromStr<Err = super::Invalid> + Ord + std::fmt::Display,
    {
        match field.parse::<T>()? {
            Some(asked) if asked > *max => Err(field.report(format!("expected at most `{max}`, got `{asked}`"))),
            Some(asked) => Ok(asked),
            None => Ok(default),
        }
    }
    let (default, max) = (limits.default_resources, limits.max_resources);
    if field.value().is_none() {
        return Ok(default);
    }
    let resources = field.object()?;
    let cpu = one(&resources.field("cpu"), default.cpu, &max.cpu);
    let memory = one(&resources.field("memory"), default.memory, &max.memory);
    let disk = one(&resources.field("disk"), default.disk, &max.disk);
    resources.finish();
    Ok(Resources {
        cpu: cpu?,
        memory: memory?,
        disk: disk?,
    })
}

fn timeout(field: &Field<'_>, limits: &Limits) -> Result<u32, Reported> {
    let seconds = field.integer(1, limits.max_timeout_seconds.into())?;
    // The range was checked.
    Ok(seconds
        .and_then(|seconds| u32::try_from(seconds).ok())
        .unwrap_or(limits.default_timeout_seconds))
}

fn annotations(field: &Field<'_>, limits: &Limits) -> Result<BTreeMap<String, Value>, Reported> {
    let entries = field.entries()?;
    let mut result = Ok(());
    let mut bytes = 0;
    let mut annotations = BTreeMap::new();
    for (key, entry) in entries {
        let Some(value) = entry.value() else { continue };
        bytes += key.len() + value.to_string().len();
        if key.is_empty() || key.len() > 128 {
            result = Err(entry.report("the key: expected 1 to 128 bytes"));
        }
        // The database can't hold it.
        if key.contains('\0') || has_nul(value) {
            result = Err(entry.report("expected no NUL character anywhere inside"));
        }
        annotations.insert(key.to_owned(), value.clone());
    }
    let max = limits.max_annotations_bytes;
    if bytes > max {
        result = Err(field.report(format!("expected at most {max} bytes of JSON in all, got {bytes}")));
    }
    result.map(|()| annotations)
}

pub(super) fn has_nul(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(fields) => fields.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
    }
}

#[cfg(test)]
mod tests;
