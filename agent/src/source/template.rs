//! Dockerfiles that are Jinja templates. The template comes from whoever wrote the source, so it gets the variables of
//! the request and nothing else: no files, no environment, and no more time and memory than a Dockerfile can need.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::Path,
};

use kiln_agent::wire::report::ProblemKind;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, syntax::SyntaxConfig};
use serde_json::Value;

use crate::step::Failure;

/// Largest template, and largest Dockerfile made of one, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// What rendering may use up: one unit is an instruction, or 64 bytes of memory.
const FUEL: u64 = 1_000_000;

/// How deep macros and the like may be nested. The stack is that of an ordinary thread.
const MAX_DEPTH: usize = 100;

/// Replaces a template by what it makes of the variables. Messages call it `name`.
pub(super) fn render(path: &Path, name: &str, variables: &BTreeMap<String, Value>) -> Result<(), Failure> {
    let failed =
        |error: io::Error| Failure::internal(format!("the template {} can't be replaced: {error}", path.display()));
    if fs::metadata(path).map_err(failed)?.len() > MAX_BYTES {
        return Err(invalid(name, None, &format!("is larger than {MAX_BYTES} bytes")));
    }
    let template = String::from_utf8(fs::read(path).map_err(failed)?).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + memchr::memchr_iter(b'\n', before).count();
        invalid(name, Some(line), "is not UTF-8")
    })?;
    let rendered = rendered(&template, name, variables)?;
    fs::write(path, rendered).map_err(failed)
}

pub(crate) fn rendered(template: &str, name: &str, variables: &BTreeMap<String, Value>) -> Result<Vec<u8>, Failure> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_DEPTH);
    // Lets errors name the variable.
    environment.set_debug(true);
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    environment.set_syntax(syntax.map_err(|error| Failure::internal(error.to_string()))?);
    let mut out = Limited { bytes: Vec::new() };
    let outcome = environment
        .template_from_named_str(name, template)
        .and_then(|template| {
            template
                .render_captured_to(minijinja::value::Serde(variables), &mut out)
                .map(drop)
        });
    match outcome {
        Ok(()) => Ok(out.bytes),
        Err(error) => Err(refused(name, &error)),
    }
}

fn refused(name: &str, error: &minijinja::Error) -> Failure {
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "takes too long or too much memory to render: shorten its loops".to_owned(),
        ErrorKind::WriteFailure => format!("renders to more than {MAX_BYTES} bytes"),
        ErrorKind::UndefinedError => {
            let which = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
            format!("uses a variable that is not defined{which}; give it in `template`, or a default by `| default(…)`")
        }
        kind => {
            let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
            format!("can't be rendered as a template: {kind}{detail}")
        }
    };
    // An error within a macro or an expression is told where it happened.
    invalid(name, error.line(), &what)
}

fn invalid(name: &str, line: Option<usize>, what: &str) -> Failure {
    let place = line.map(|line| format!(", line {line}")).unwrap_or_default();
    Failure::problem(ProblemKind::Dockerfile, format!("`dockerfile`: `{name}`{place} {what}"))
}

/// Takes no more than a Dockerfile may hold.
struct Limited {
    bytes: Vec<u8>,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() as u64 + bytes.len() as u64 > MAX_BYTES {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn render(template: &str, variables: &Value) -> Result<String, String> {
        let variables = serde_json::from_value(variables.clone()).unwrap();
        match rendered(template, "docker/Dockerfile.j2", &variables) {
            Ok(bytes) => Ok(String::from_utf8(bytes).unwrap()),
            Err(Failure::Problem(_, problem)) => {
                assert_eq!(problem.kind, ProblemKind::Dockerfile, "{}", problem.message);
                Err(problem.message)
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn variables_loops_and_conditions() {
        let template = "FROM {{ base }}\n{% for package in packages %}RUN install {{ package.name }}\n{% endfor %}{% if debug %}ENV DEBUG=1\n{% endif %}LABEL n={{ n }} q=\"{{ text }}\"\n";
        let variables = json!({"base": "busybox:1", "packages": [{"name": "a"}, {"name": "b<c"}], "debug": true, "n": 1.5,
                               "text": "<&'>"});
        assert_eq!(
            render(template, &variables).unwrap(),
            "FROM busybox:1\nRUN install a\nRUN install b<c\nENV DEBUG=1\nLABEL n=1.5 q=\"<&'>\"\n"
        );
    }

    #[test]
    fn what_is_no_template_stays_as_it_is() {
        for text in [
            "",
            "FROM scratch",
            "FROM scratch\n",
            "FROM scratch\r\nRUN a && b\r\n\n",
            "RUN echo \"$A\" '${B}' \\\n  x\n",
        ] {
            assert_eq!(render(text, &json!({})).unwrap(), text);
        }
    }

    #[test]
    fn undefined_variables_are_errors_with_their_line() {
        let message = render("FROM busybox\n\nLABEL version={{ version }}\n", &json!({"verison": 1})).unwrap_err();
        assert!(
            message.starts_with("`dockerfile`: `docker/Dockerfile.j2`, line 3 uses a variable that is not defined"),
            "{message}"
        );
        assert!(
            message.contains("`version`") || message.contains("version"),
            "{message}"
        );
        for template in [
            "{{ a.b }}",
            "{% for x in gone %}{% endfor %}",
            "{% if gone %}{% endif %}",
            "{{ gone | upper }}",
        ] {
            let message = render(&format!("FROM busybox\n{template}"), &json!({"a": {}})).unwrap_err();
            assert!(message.contains(", line 2 "), "{message}");
        }
        assert_eq!(
            render("{{ gone | default('x') }}{{ gone is defined }}", &json!({})).unwrap(),
            "xFalse"
        );
    }

    #[test]
    fn errors_of_the_template_say_where() {
        for (template, words) in [
            ("FROM a\n{% if %}", "syntax error"),
            ("FROM a\n{{ 'x' | no_such_filter }}", "unknown filter"),
            ("FROM a\n{% include '/etc/passwd' %}", "line 2"),
            ("FROM a\n{{ 1 / 0 }}", "line 2"),
        ] {
            let message = render(template, &json!({})).unwrap_err();
            assert!(
                message.contains(words) && message.contains("line 2"),
                "{template}: {message}"
            );
        }
    }

    #[test]
    fn what_never_ends_is_stopped() {
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        let message = render(endless, &json!({})).unwrap_err();
        assert!(
            message.contains("too long") || message.contains("more than"),
            "{message}"
        );
        let huge = "{{ 'x' * 999999999 }}";
        assert!(render(huge, &json!({})).is_err());
        let deep = "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}";
        assert!(render(deep, &json!({})).is_err());
    }

    proptest! {
        #[test]
        fn no_template_is_too_strange(template in "([a-z{}%#'\"|.()\\[\\] \n-]|\\{\\{|\\}\\}|\\{%|%\\}|for|in|if){0,40}") {
            // Whatever comes of it, it ends, and it blames the template.
            let _ = render(&template, &json!({"a": [1, {"b": "c"}]}));
        }

        #[test]
        fn a_value_comes_out_as_it_went_in(value in "\\PC{0,40}") {
            prop_assert_eq!(render("FROM {{ x }}\n", &json!({"x": &value})).unwrap(), format!("FROM {value}\n"));
        }
    }
}
