//! The words of the command line for what the API says: fields become flags, operations become commands.

use serde_json::Value;

/// What of a field is named behind its flag.
#[derive(Clone, Copy)]
enum Of {
    /// Nothing.
    Nothing,
    /// Its value.
    Value,
    /// The key that the value has.
    Key,
}

/// The beginnings of pointers, and what sets what is there.
const FLAGS: [(&str, &str, Of); 34] = [
    ("/images", "-t, --tag", Of::Value),
    ("/push", "--no-push", Of::Nothing),
    ("/build_args", "--build-arg", Of::Key),
    ("/secrets", "--secret", Of::Key),
    ("/ssh", "--ssh", Of::Value),
    ("/dockerfile", "-f, --file", Of::Value),
    ("/target", "--target", Of::Value),
    ("/platforms", "--platform", Of::Value),
    ("/labels", "--label", Of::Key),
    ("/builder", "--builder", Of::Value),
    ("/template", "--template", Of::Key),
    ("/timeout_seconds", "--timeout", Of::Nothing),
    ("/priority", "--priority", Of::Value),
    ("/annotations", "--annotation", Of::Key),
    ("/group/supersede", "--supersede", Of::Value),
    ("/group/serialize", "--serialize", Of::Nothing),
    ("/group", "--group", Of::Value),
    ("/coalesce", "--coalesce", Of::Nothing),
    ("/project", "--project", Of::Value),
    ("/resources/cpu", "--cpu", Of::Value),
    ("/resources/memory", "--memory", Of::Value),
    ("/resources/disk", "--disk", Of::Value),
    ("/registry_credentials", "--registry-credentials", Of::Value),
    ("/source/credentials", "--git-credentials", Of::Value),
    ("/source/sha256", "--sha256", Of::Value),
    ("/cache/from", "--cache-from", Of::Value),
    ("/cache/to", "--cache-to", Of::Value),
    ("/cache", "--cache-from, --cache-to", Of::Nothing),
    ("/source", "the PATH or URL", Of::Nothing),
    ("/data/registry", "--registry", Of::Nothing),
    ("/data/username", "--username", Of::Nothing),
    ("/data/known_hosts", "--known-hosts", Of::Nothing),
    ("/data", "--from", Of::Nothing),
    ("/name", "the NAME", Of::Nothing),
];

/// Parameters of queries that don't have their flag's name.
const PARAMETERS: [(&str, &str); 3] = [
    ("created_after", "--since"),
    ("created_before", "--since"),
    ("cursor", "--limit"),
];

/// What the API says in its own terms, and what is said instead.
const PHRASES: [(&str, &str); 10] = [
    (r#"set `"push": false`"#, "give `--no-push`"),
    (
        "without query and fragment: use `ref`, `commit` and `subdir`",
        "without a query; REF and FOLDER go behind it: `https://git.example/app.git#REF:FOLDER`",
    ),
    (": a folder goes into `subdir`", ""),
    ("; a branch or tag goes into `ref`", ""),
    ("one reference in `from`", "one `--cache-from`"),
    (
        "send the archive again to `POST /v1/uploads` and use the new `id`",
        "run the command again",
    ),
    (
        "leave it out for the token's own, or see `GET /v1/projects`",
        "correct the name, or leave it out for the token's own",
    ),
    ("; `GET /v1/projects` lists those that are", ""),
    (
        "`GET /v1/builds` lists those that are",
        "`kiln list` lists those that are",
    ),
    (
        "the Authorization header holds no token of Kiln",
        "what was sent is no token of Kiln",
    ),
];

/// What sets a field, with as much of what was set as tells which one is meant. `request` is what was sent, if known.
pub(super) fn flag(pointer: &str, request: Option<&Value>) -> Option<String> {
    let below = |place: &str| {
        let rest = pointer.strip_prefix(place)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(rest)
    };
    let (rest, flag, of) = FLAGS
        .iter()
        .find_map(|(place, flag, of)| Some((below(place)?, *flag, *of)))?;
    let named = match of {
        Of::Nothing => None,
        Of::Key => rest
            .strip_prefix('/')
            .map(|key| key.replace("~1", "/").replace("~0", "~")),
        Of::Value => match request.and_then(|request| request.pointer(pointer)) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(number @ Value::Number(_)) => Some(number.to_string()),
            _ => None,
        },
    };
    Some(match named {
        // One form of the flag is enough beside its value.
        Some(named) => format!("{} {named}", flag.rsplit(' ').next().unwrap_or(flag)),
        None => flag.to_owned(),
    })
}

/// The flag for a parameter of a query.
pub(super) fn parameter(name: &str) -> String {
    match PARAMETERS.iter().find(|(parameter, _)| *parameter == name) {
        Some((_, flag)) => (*flag).to_owned(),
        None => format!("--{}", name.replace('_', "-")),
    }
}

/// What is wrong with a field, in words of the command line.
pub(super) fn detail(pointer: &str, text: &str) -> String {
    let text = sentence(text);
    // The flag takes other units, too.
    if pointer == "/timeout_seconds" {
        text.replace("a whole number", "a time") + " seconds"
    } else {
        text
    }
}

/// A sentence of the API in words of the command line.
pub(super) fn sentence(text: &str) -> String {
    let mut text = text.to_owned();
    for (api, ours) in PHRASES {
        text = text.replace(api, ours);
    }
    // `PUT /v1/projects/PROJECT/secrets/NAME`
    if let Some((before, rest)) = text.split_once("`PUT /v1/projects/")
        && let Some((path, after)) = rest.split_once('`')
        && let Some((project, name)) = path.split_once("/secrets/")
    {
        return format!("{before}`kiln secret set {name} --project {project}`{after}");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_named_by_their_flags_and_what_was_given() {
        let request = json!({
            "images": ["app:1"], "labels": {"a b/c": "d"}, "resources": {"memory": "4GB"}, "priority": 7,
        });
        let flag = |pointer| flag(pointer, Some(&request));
        for (pointer, words) in [
            ("/images/0", "--tag app:1"),
            ("/images", "-t, --tag"),
            ("/labels/a b~1c", "--label a b/c"),
            ("/resources/memory", "--memory 4GB"),
            ("/priority", "--priority 7"),
            ("/source/url", "the PATH or URL"),
            ("/cache", "--cache-from, --cache-to"),
        ] {
            assert_eq!(flag(pointer).as_deref(), Some(words), "{pointer}");
        }
        assert_eq!(flag("/imagesque"), None);
        assert_eq!(super::flag("/images/0", None).as_deref(), Some("-t, --tag"));
        assert_eq!([parameter("created_after"), parameter("image")], ["--since", "--image"]);
    }

    #[test]
    fn operations_become_commands() {
        assert_eq!(
            detail("/timeout_seconds", "expected a whole number from 1 to 86400"),
            "expected a time from 1 to 86400 seconds"
        );
        assert_eq!(
            sentence(
                "project `p` has no secret `s`: store it with `PUT /v1/projects/p/secrets/s`, or correct the name"
            ),
            "project `p` has no secret `s`: store it with `kiln secret set s --project p`, or correct the name"
        );
        assert_eq!(
            sentence("no build with this id is there for this token; `GET /v1/builds` lists those that are"),
            "no build with this id is there for this token; `kiln list` lists those that are"
        );
    }
}
