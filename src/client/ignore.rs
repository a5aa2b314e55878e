//! Which files of a folder belong to a build context, by the rules of `.dockerignore`.
//!
//! No crate matches exactly as Docker does (gitignore's rules differ), so this follows the library that Docker and
//! `BuildKit` use, moby/patternmatcher: patterns are relative to the context, cleaned as paths, matched against a path or
//! any of its parents, and the last pattern that matches decides. The one deliberate difference is inside of `[…]`, where
//! `*` and `?` stand for themselves, as the documentation of Go's `filepath.Match` says.

/// The patterns of an ignore file.
#[derive(Clone, Debug, Default)]
pub struct IgnoreFile {
    patterns: Vec<Pattern>,
}

/// A line that is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: `{text}` is not a pattern: {why}")]
pub struct InvalidPattern {
    /// Counts from 1.
    pub line: usize,
    text: String,
    why: &'static str,
}

#[derive(Clone, Debug)]
struct Pattern {
    /// Whether what matches is kept after all (`!`).
    exception: bool,
    form: Form,
    /// The path that all it matches is or is below of; `None` when that isn't written out, because there is something
    /// special beside a trailing `/*` or `/**`.
    root: Option<String>,
}

/// Docker takes shortcuts for some forms; a leading `**` differs by that from its general meaning (`**x` is any path that
/// ends with `x`).
#[derive(Clone, Debug)]
enum Form {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Tokens(Vec<Token>),
}

#[derive(Clone, Debug)]
enum Token {
    Literal(char),
    /// `?`
    One,
    /// `*`
    Run,
    /// `**/`: any number of whole folders, or none.
    Folders,
    /// `**` at the end.
    Rest,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// Which patterns a folder matched; its content inherits them.
#[derive(Clone, Debug, Default)]
pub struct Inherited(Vec<bool>);

impl IgnoreFile {
    /// Reads an ignore file.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let mut patterns = Vec::new();
        for (index, line) in text.strip_prefix('\u{feff}').unwrap_or(text).lines().enumerate() {
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            let text = line.trim();
            let (exception, body) = match text.strip_prefix('!') {
                Some(body) => (true, body.trim()),
                None => (false, text),
            };
            let invalid = |why| InvalidPattern {
                line: index + 1,
                text: text.to_owned(),
                why,
            };
            if body.is_empty() {
                return Err(invalid("expected something behind the `!`"));
            }
            let cleaned = clean(body);
            let cleaned = cleaned
                .strip_prefix('/')
                .filter(|rest| !rest.is_empty())
                .unwrap_or(&cleaned)
                .trim();
            if exception && cleaned == "/" {
                return Err(invalid("the context itself can't be an exception"));
            }
            patterns.push(Pattern::compile(cleaned, exception).map_err(invalid)?);
        }
        Ok(Self { patterns })
    }

    /// Whether a path is left out, and what its content inherits. `parent` is what the call for its folder gave, or the
    /// default in the context itself.
    pub fn excludes(&self, path: &str, parent: &Inherited) -> (bool, Inherited) {
        let mut excluded = false;
        let mut matched = vec![false; self.patterns.len()];
        let text: Vec<char> = path.chars().collect();
        for (index, pattern) in self.patterns.iter().enumerate() {
            let inherited = parent.0.get(index).copied().unwrap_or(false);
            // What changes nothing isn't looked at; an exception to nothing isn't handed down either.
            let hit = inherited || (pattern.exception == excluded && pattern.form.matches(path, &text));
            if hit {
                matched[index] = true;
                excluded = !pattern.exception;
            }
        }
        (excluded, Inherited(matched))
    }

    /// Whether something below an excluded folder may be kept by an exception. Those that don't say where they apply
    /// may apply anywhere; the others, only where their root is the folder or below it: had one applied to a folder above,
    /// this one would have inherited it. (The rule of `BuildKit`'s walk, `filter.go` in tonistiigi/fsutil, which takes
    /// `x` for the root of `x/*/**`, too, and so misses what that keeps.)
    pub fn may_keep_below(&self, folder: &str) -> bool {
        let mut exceptions = self.patterns.iter().filter(|pattern| pattern.exception);
        exceptions.any(|pattern| match &pattern.root {
            None => true,
            Some(root) => root
                .strip_prefix(folder)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        })
    }
}

/// The shortest equivalent path, as Go's `filepath.Clean` has it.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

impl Pattern {
    fn compile(text: &str, exception: bool) -> Result<Self, &'static str> {
        let chars: Vec<char> = text.chars().collect();
        let tokens = tokens(&chars)?;
        let literal = |tokens: &[Token]| tokens.iter().all(|token| matches!(token, Token::Literal(_)));
        // Shortcuts are for texts that mean themselves.
        let escaped = text.contains(['\\', ']']);
        let form = match tokens.as_slice() {
            _ if escaped => Form::Tokens(tokens.clone()),
            tokens if literal(tokens) => Form::Exact(text.to_owned()),
            [Token::Folders | Token::Rest, rest @ ..] if literal(rest) => Form::Suffix(text[2..].to_owned()),
            [start @ .., Token::Rest] if literal(start) => Form::Prefix(text[..text.len() - 2].to_owned()),
            tokens => Form::Tokens(tokens.to_vec()),
        };
        let root = text.strip_suffix("/**").or_else(|| text.strip_suffix("/*"));
        let root = root.unwrap_or(text);
        Ok(Self {
            exception,
            form,
            root: (!root.contains(['*', '?', '[', ']', '\\'])).then(|| root.to_owned()),
        })
    }
}

fn tokens(pattern: &[char]) -> Result<Vec<Token>, &'static str> {
    let mut tokens = Vec::new();
    let mut rest = pattern;
    while let [first, tail @ ..] = rest {
        rest = tail;
        tokens.push(match first {
            '*' if rest.first() == Some(&'*') => {
                rest = &rest[1..];
                if rest.first() == Some(&'/') {
                    rest = &rest[1..];
                }
                if rest.is_empty() { Token::Rest } else { Token::Folders }
            }
            '*' => Token::Run,
            '?' => Token::One,
            '\\' => {
                let (escaped, tail) = rest.split_first().ok_or("it ends with a `\\`")?;
                rest = tail;
                Token::Literal(*escaped)
            }
            '[' => {
                let (class, tail) = class(rest)?;
                rest = tail;
                class
            }
            other => Token::Literal(*other),
        });
    }
    Ok(tokens)
}

/// What stands behind a `[`.
fn class(pattern: &[char]) -> Result<(Token, &[char]), &'static str> {
    const UNCLOSED: &str = "a `[` is not closed";
    fn bound(pattern: &[char]) -> Result<(char, &[char]), &'static str> {
        match pattern {
            ['\\', escaped, rest @ ..] => Ok((*escaped, rest)),
            ['-' | ']', ..] => Err("a `-` or `]` stands where a character is expected in `[…]`"),
            [plain, rest @ ..] if *plain != '\\' => Ok((*plain, rest)),
            _ => Err(UNCLOSED),
        }
    }
    let (negated, mut rest) = match pattern {
        ['^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut ranges = Vec::new();
    loop {
        if let [']', tail @ ..] = rest
            && !ranges.is_empty()
        {
            return Ok((Token::Class { negated, ranges }, tail));
        }
        let (low, tail) = bound(rest)?;
        rest = tail;
        let mut high = low;
        if let ['-', tail @ ..] = rest {
            (high, rest) = bound(tail)?;
        }
        if low > high {
            return Err("a range in `[…]` goes backwards");
        }
        ranges.push((low, high));
    }
}

impl Form {
    fn matches(&self, path: &str, chars: &[char]) -> bool {
        match self {
            Self::Exact(text) => path == text,
            Self::Prefix(prefix) => path.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => path.ends_with(suffix.as_str()) || suffix.strip_prefix('/') == Some(path),
            Self::Tokens(tokens) => tokens_match(tokens, chars),
        }
    }
}

/// Whether the tokens match all of the text. The positions reached are carried along together, so that no pattern takes
/// longer than its length times the text's.
fn tokens_match(tokens: &[Token], text: &[char]) -> bool {
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    for token in tokens {
        let mut next = vec![false; text.len() + 1];
        match token {
            Token::Literal(_) | Token::One | Token::Class { .. } => {
                for (at, c) in text.iter().enumerate() {
                    next[at + 1] = reached[at] && token.takes(*c);
                }
            }
            Token::Run => {
                for at in 0..=text.len() {
                    next[at] = reached[at] || (at > 0 && next[at - 1] && text[at - 1] != '/');
                }
            }
            Token::Folders | Token::Rest => {
                let mut within = false;
                for at in 0..=text.len() {
                    within |= reached[at];
                    let border = matches!(token, Token::Rest) || (at > 0 && text[at - 1] == '/');
                    next[at] = reached[at] || (within && border);
                }
            }
        }
        reached = next;
    }
    reached[text.len()]
}

impl Token {
    /// Whether this takes the character, for those that take exactly one.
    fn takes(&self, c: char) -> bool {
        match self {
            Self::Literal(literal) => *literal == c,
            Self::One => c != '/',
            Self::Class { negated, ranges } => *negated != ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)),
            Self::Run | Self::Folders | Self::Rest => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether a path is left out, by way of its folders.
    fn excludes(ignore: &IgnoreFile, path: &str) -> bool {
        let mut inherited = Inherited::default();
        let mut excluded = false;
        for end in ends(path) {
            (excluded, inherited) = ignore.excludes(&path[..end], &inherited);
        }
        excluded
    }

    /// Whether a path isn't found by a walk, which doesn't enter folders that nothing is kept of.
    fn walk_misses(ignore: &IgnoreFile, path: &str) -> bool {
        let mut inherited = Inherited::default();
        let (mut excluded, mut folder) = (false, "");
        for end in ends(path) {
            if excluded && !ignore.may_keep_below(folder) {
                return true;
            }
            folder = &path[..end];
            (excluded, inherited) = ignore.excludes(folder, &inherited);
        }
        excluded
    }

    /// Where the folders of a path end, and the path itself.
    fn ends(path: &str) -> impl Iterator<Item = usize> {
        path.match_indices('/').map(|(end, _)| end).chain([path.len()])
    }

    fn ignore(text: &str) -> IgnoreFile {
        IgnoreFile::parse(text).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The examples of Docker's documentation and of moby/patternmatcher's own tests, with what that library says.
    #[test]
    fn patterns_match_as_in_docker() {
        let cases = [
            ("**", "dir/file", true),
            ("**/", "file", true),
            ("**/**", "dir/file", true),
            ("dir/**", "dir", false),
            ("dir/**", "dir/dir2/file", true),
            ("**/dir", "dir/file", true),
            ("**/dir2/*", "dir/dir2/file", true),
            ("**file", "dir/xfile", true),
            ("**/file", "dir/xfile", false),
            ("**/file*.txt*", "dir/dir/file.txt", true),
            ("**/**/*.txt2", "dir/dir/file.txt", false),
            ("a**/*.txt", "a/dir/dir/file.txt", true),
            ("a/*.txt", "a/dir/file.txt", false),
            ("a[b-d]e", "ace", true),
            ("a[b-d]e", "aae", false),
            ("a[^b-d]e", "aze", true),
            ("a[\\]]e", "a]e", true),
            (".*", ".foo", true),
            (".*", "foo", false),
            ("abc.def", "abcZdef", false),
            ("abc?def", "abcZdef", true),
            ("abc?def", "abc/def", false),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("a(b)c/def", "a(b)c/def", true),
            ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
            ("*/temp*", "somedir/temporary.txt", true),
            ("*/temp*", "temporary.txt", false),
            ("*/*/temp*", "somedir/subdir/temporary.txt", true),
            ("temp?", "tempa", true),
            ("/foo", "foo", true),
            ("./foo/../bar/", "bar/x", true),
            ("*", "a/b", true),
            ("[*]", "*", true),
            ("[*]", "a", false),
            ("é?", "éa", true),
            ("#foo", "foo", false),
            (" foo ", "foo", true),
            ("\u{feff}foo", "foo", true),
            ("..", "foo", false),
            ("foo\r\nbar", "foo", true),
        ];
        for (text, path, expected) in cases {
            assert_eq!(excludes(&ignore(text), path), expected, "{text:?} on {path}");
        }
    }

    #[test]
    fn the_last_pattern_that_matches_decides() {
        let cases = [
            ("*.md\n!README.md", "README.md", false),
            ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", true),
            ("*.md\nREADME-secret.md\n!README*.md", "README-secret.md", false),
            ("!fileutils.go\n*.go", "fileutils.go", true),
            ("docs\n!docs/README.md", "docs/README.md", false),
            ("docs\n!docs/README.md", "docs/other.md", true),
            ("docs/*\n!docs/README.md", "docs/README.md", false),
            ("**\n!util/docker/web", "util/docker/web/foo", false),
            ("**\n!util/docker/web\nutil/docker/web/foo", "util/docker/web/foo", true),
            ("**\n!dist/*.whl", "dist/app.whl", false),
            ("*\n! src", "src/main.rs", false),
            ("*\n!src/*", "src/main.rs", false),
            ("*\n!src/**", "src/bin/main.rs", false),
            ("*\n!src/*", "srcs/main.rs", true),
            ("*\n!src/*/**", "src/bin/main.rs", false),
            ("*\n!a**", "ab/x", false),
            ("*\n!a/b/**", "a/b/x", false),
            ("*\n!a/b/**", "a/x", true),
            ("*\n!a/b\na/b/c", "a/b/c/d", true),
        ];
        for (text, path, expected) in cases {
            let ignore = ignore(text);
            assert_eq!(excludes(&ignore, path), expected, "{text:?} on {path}");
            assert_eq!(walk_misses(&ignore, path), expected, "{text:?} on the way to {path}");
        }
    }

    #[test]
    fn lines_that_are_no_patterns_are_named() {
        for (text, line) in [
            ("a\n!", 2),
            ("[", 1),
            ("# x\n\n[]a]", 3),
            ("[a", 1),
            ("[-]", 1),
            ("[b-a]", 1),
            ("a\\", 1),
            ("!/", 1),
        ] {
            assert_eq!(IgnoreFile::parse(text).expect_err(text).line, line, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_out_matches_itself(
            // Every part has something beside dots: `.` and `..` don't mean themselves.
            path in "[.]{0,2}[a-z+(){}|$^é-][a-z.+(){}|$^é-]{0,3}(/[.]{0,2}[a-z+(){}|$^é-][a-z.+(){}|$^é-]{0,3}){0,3}",
        ) {
            prop_assert!(excludes(&ignore(&path), &path));
            let (folder, below) = (format!("/{path}/"), format!("{path}/below"));
            prop_assert!(excludes(&ignore(&folder), &below));
            let exception = format!("**\n!{path}");
            prop_assert!(!excludes(&ignore(&exception), &path));
        }

        #[test]
        fn no_pattern_takes_long_or_panics(text in "[a*?/\\[\\]!\\\\^.-]{0,24}(\n[a*?/\\[\\]!\\\\^.-]{0,12}){0,3}", path in "[a/]{1,40}") {
            if let Ok(ignore) = IgnoreFile::parse(&text) {
                excludes(&ignore, &path);
            }
        }

        #[test]
        fn a_folder_that_is_not_walked_hides_nothing(
            text in "(!?[ab*]{1,3}(/[ab*]{1,2}){0,2}\n){1,4}",
            path in "[ab](/[ab]){1,3}",
        ) {
            let Ok(ignore) = IgnoreFile::parse(&text) else { return Ok(()) };
            prop_assert_eq!(walk_misses(&ignore, &path), excludes(&ignore, &path), "{:?} on {}", text, path);
        }
    }
}
