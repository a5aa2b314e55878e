//! Which service is called, with which token: flags win over the environment, the environment over the configuration
//! file.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use url::Url;

use super::{args::Connection, error::ClientError};
use crate::domain::project::ProjectName;

/// Where `kiln serve` and `kiln dev` listen unless told otherwise.
const DEFAULT_URL: &str = "http://127.0.0.1:8080";

/// What a command needs to know to call the service.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) url: Url,
    pub(super) token: Token,
    pub(super) project: Option<ProjectName>,
}

/// A bearer token. Shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

/// The configuration file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    url: Option<String>,
    token: Option<String>,
    project: Option<ProjectName>,
}

impl Settings {
    /// Puts together what the flags, the environment and the file say. `warn` takes what is amiss but stops nothing.
    pub(super) fn resolve(connection: &Connection, warn: impl FnMut(String)) -> Result<Self, ClientError> {
        let path = config_path(|name| std::env::var_os(name).map(PathBuf::from));
        let file = match &path {
            Some(path) => read_config(path, warn)?,
            None => ConfigFile::default(),
        };
        let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        let url = given(&connection.url).or(file.url);
        let url = parse_url(url.as_deref().unwrap_or(DEFAULT_URL))?;
        let from_file = match &connection.token_file {
            Some(path) => Some(read_token(path)?),
            None => None,
        };
        let token = from_file.or_else(|| given(&connection.token)).or(file.token);
        let Some(token) = token
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty())
        else {
            return Err(ClientError::NoToken { url, config: path });
        };
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ClientError::usage(
                "the token isn't one: expected `kiln_` and letters and digits",
            ));
        }
        Ok(Self {
            url,
            token: Token(token),
            project: connection.project.clone().or(file.project),
        })
    }
}

fn parse_url(text: &str) -> Result<Url, ClientError> {
    let expected = || {
        ClientError::usage(format!(
            "`{text}` is not the address of a service: expected one such as `https://kiln.example` (--url, KILN_URL)"
        ))
    };
    let url = Url::parse(text).map_err(|_| expected())?;
    let usable = matches!(url.scheme(), "http" | "https") && url.has_host();
    if usable && url.username().is_empty() && url.password().is_none() && url.query().is_none() {
        Ok(url)
    } else {
        Err(expected())
    }
}

fn read_token(path: &Path) -> Result<String, ClientError> {
    let read = if path.as_os_str() == "-" {
        io::read_to_string(io::stdin())
    } else {
        fs::read_to_string(path)
    };
    read.map_err(|source| ClientError::file(path, &source))
}

/// `$XDG_CONFIG_HOME/kiln/config.toml`, `~/.config/kiln/config.toml` without.
pub(super) fn config_path(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|path| path.is_absolute());
    let folder = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")))?;
    Some(folder.join("kiln/config.toml"))
}

fn read_config(path: &Path, mut warn: impl FnMut(String)) -> Result<ConfigFile, ClientError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(ConfigFile::default());
        }
        Err(source) => return Err(ClientError::file(path, &source)),
    };
    // The parser's own message quotes the line, which may be the one with the token.
    let file: ConfigFile = toml::from_str(&text).map_err(|error: toml::de::Error| {
        let line = error
            .span()
            .map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        let (path, message) = (path.display(), error.message());
        ClientError::usage(format!(
            "{path}, line {line}: {message} (known keys: url, token, project)"
        ))
    })?;
    let mode = fs::metadata(path).map(|metadata| metadata.permissions().mode());
    if file.token.is_some() && mode.is_ok_and(|mode| mode & 0o077 != 0) {
        let path = path.display();
        warn(format!("others can read the token in {path}: chmod 600 {path}"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_file_is_where_it_is_expected() {
        let path = |xdg: Option<&str>, home: Option<&str>| {
            config_path(|name| if name == "HOME" { home } else { xdg }.map(PathBuf::from))
        };
        assert_eq!(
            path(None, Some("/home/me")),
            Some("/home/me/.config/kiln/config.toml".into())
        );
        assert_eq!(
            path(Some("/etc/me"), Some("/home/me")),
            Some("/etc/me/kiln/config.toml".into())
        );
        assert_eq!(
            path(Some(""), Some("/root")),
            Some("/root/.config/kiln/config.toml".into())
        );
        assert_eq!(path(None, None), None);
    }

    #[test]
    fn addresses_are_http() {
        assert!(parse_url("https://kiln.example/team/").is_ok());
        for bad in [
            "kiln.example",
            "ftp://kiln.example",
            "http://me:secret@kiln.example",
            "localhost:8080",
            "",
        ] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }
}
