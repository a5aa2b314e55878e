//! Patterns for names of branches, tags, repositories and files: `*` stands for anything but `/`, `**` for anything,
//! `**/` for any folders or none, `?` for one character but `/`.

use std::{fmt, str::FromStr};

use crate::domain::spec::{Invalid, text::checked_text};

checked_text! {
    /// A pattern.
    Glob, |text| {
        if (1..=255).contains(&text.len()) && !text.chars().any(char::is_control) {
            Ok(())
        } else {
            Err(Invalid::new("expected a pattern such as `main`, `release/*` or `src/**`: 1 to 255 bytes on one line"))
        }
    }
}

#[derive(Clone, Copy)]
enum Token {
    Exactly(char),
    One,
    Within,
    Across,
    /// `**/` where a name begins: any folders, or none. Reached where one begins.
    Folders,
    /// Inside the name of one of them.
    Folder,
}

fn tokens(pattern: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        let begins = rest.len() == pattern.len() || pattern[..pattern.len() - rest.len()].ends_with('/');
        let length = match c {
            '*' if begins && rest.starts_with("**/") => {
                tokens.extend([Token::Folders, Token::Folder]);
                3
            }
            '*' if rest.starts_with("**") => {
                tokens.push(Token::Across);
                2
            }
            '*' => {
                tokens.push(Token::Within);
                1
            }
            '?' => {
                tokens.push(Token::One);
                1
            }
            c => {
                tokens.push(Token::Exactly(c));
                c.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    tokens
}

impl Glob {
    /// Whether it stands for this name. Takes time in proportion to both lengths, whatever the pattern.
    pub fn matches(&self, name: &str) -> bool {
        let tokens = tokens(self.as_str());
        // The tokens that may come next, as a set; behind the last is the end.
        let mut at = vec![false; tokens.len() + 1];
        at[0] = true;
        pass_over(&tokens, &mut at);
        for c in name.chars() {
            let mut next = vec![false; tokens.len() + 1];
            for (index, token) in tokens.iter().enumerate().filter(|(index, _)| at[*index]) {
                match token {
                    Token::Exactly(wanted) if *wanted == c => next[index + 1] = true,
                    Token::One if c != '/' => next[index + 1] = true,
                    Token::Within if c != '/' => next[index] = true,
                    Token::Folders if c == '/' => next[index] = true,
                    Token::Folders => next[index + 1] = true,
                    Token::Folder if c == '/' => next[index - 1] = true,
                    Token::Folder | Token::Across => next[index] = true,
                    Token::Exactly(_) | Token::One | Token::Within => {}
                }
            }
            pass_over(&tokens, &mut next);
            at = next;
        }
        at[tokens.len()]
    }
}

/// Stars may stand for nothing.
fn pass_over(tokens: &[Token], at: &mut [bool]) {
    for (index, token) in tokens.iter().enumerate() {
        match token {
            Token::Within | Token::Across if at[index] => at[index + 1] = true,
            Token::Folders if at[index] => at[index + 2] = true,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<Glob>().expect("a pattern").matches(name)
    }

    #[test]
    fn stars_stop_at_slashes_unless_there_are_two() {
        for (pattern, name, expected) in [
            ("main", "main", true),
            ("main", "mainline", false),
            ("main", "xmain", false),
            ("release/*", "release/1", true),
            ("release/*", "release/1/2", false),
            ("release/**", "release/1/2", true),
            ("*", "main", true),
            ("*", "a/b", false),
            ("**", "a/b", true),
            ("v*.*", "v1.2", true),
            ("v?", "v1", true),
            ("v?", "v12", false),
            ("?", "/", false),
            ("**/*.rs", "src/a/b.rs", true),
            ("**/*.rs", "b.rs", true),
            ("**/b.rs", "xb.rs", false),
            ("src/**", "src/x", true),
            ("src/**", "srcx", false),
            ("docs/**/*.md", "docs/a/b.md", true),
            ("docs/**/*.md", "docs/b.md", true),
            ("docs/**/*.md", "docs/b.txt", false),
            ("a**/b", "axb/b", true),
            ("a**/b", "ab", false),
            ("é*", "éa", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        assert!("".parse::<Glob>().is_err() && "a\nb".parse::<Glob>().is_err());
    }

    proptest! {
        #[test]
        fn a_name_is_a_pattern_of_itself(name in "[a-z/.é]{1,30}") {
            prop_assert!(matches(&name, &name));
            prop_assert!(matches("**", &name));
            prop_assert_eq!(matches("*", &name), !name.contains('/'));
        }
    }
}
