//! Answers git's question for user and password (gitcredentials(7)). They stand in files: they pass through no argument,
//! no environment variable and no URL, and go to the one server that they are for, wherever a redirect or a submodule
//! leads.

use std::{
    fs,
    io::{self, BufRead, Write},
    path::Path,
    process::ExitCode,
};

use crate::args::Login;

/// Reads git's question from standard input and answers it on standard output.
pub(crate) fn answer(login: &Login) -> ExitCode {
    match reply(login, io::stdin().lock(), &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kiln-agent: the credentials can't be read: {error}");
            ExitCode::FAILURE
        }
    }
}

fn reply(login: &Login, question: impl BufRead, out: &mut impl Write) -> io::Result<()> {
    let (mut protocol, mut host) = (String::new(), String::new());
    for line in question.lines() {
        let line = line?;
        match line.split_once('=') {
            Some(("protocol", value)) => value.clone_into(&mut protocol),
            Some(("host", value)) => value.clone_into(&mut host),
            _ => {}
        }
    }
    // What worked and what didn't is of no interest: nothing is remembered.
    if login.verb != "get" || server(&format!("{protocol}://{host}")) != server(&login.server) {
        return Ok(());
    }
    writeln!(out, "username={}", read(&login.username)?)?;
    writeln!(out, "password={}", read(&login.password)?)
}

/// One line: another would be another field of the answer.
fn read(path: &Path) -> io::Result<String> {
    let text = fs::read_to_string(path)?;
    if text.contains(['\n', '\0']) {
        return Err(io::Error::other(format!("{} holds more than one line", path.display())));
    }
    Ok(text)
}

/// Scheme and host, with the port only where it isn't the scheme's own.
fn server(url: &str) -> String {
    let url = url.to_ascii_lowercase();
    let own_port = match url.split_once("://") {
        Some(("http", _)) => ":80",
        Some(("https", _)) => ":443",
        _ => "",
    };
    match url.strip_suffix(own_port) {
        Some(rest) => rest.to_owned(),
        None => url,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(server: &str, verb: &str, question: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let login = Login {
            server: server.to_owned(),
            username: file("username", "ann"),
            password: file("password", "p=a ss"),
            verb: verb.to_owned(),
        };
        let mut out = Vec::new();
        reply(&login, question.as_bytes(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn only_the_server_itself_is_answered() {
        let told = "username=ann\npassword=p=a ss\n";
        for (server, question, expected) in [
            ("https://git.example", "protocol=https\nhost=git.example\n", told),
            (
                "https://git.example",
                "protocol=https\nhost=Git.Example:443\nwwwauth[]=Basic\n",
                told,
            ),
            (
                "http://git.example:3000",
                "protocol=http\nhost=git.example:3000\n\n",
                told,
            ),
            ("https://git.example", "protocol=http\nhost=git.example\n", ""),
            ("https://git.example", "protocol=https\nhost=git.example:8443\n", ""),
            ("https://git.example", "protocol=https\nhost=evil.example\n", ""),
            ("https://git.example", "protocol=https\nhost=git.example.evil\n", ""),
            ("https://git.example", "", ""),
        ] {
            assert_eq!(asked(server, "get", question), expected, "{question}");
        }
    }

    #[test]
    fn nothing_is_told_but_when_asked() {
        let question = "protocol=https\nhost=git.example\nusername=ann\npassword=x\n";
        for verb in ["store", "erase"] {
            assert_eq!(asked("https://git.example", verb, question), "");
        }
    }

    #[test]
    fn a_file_with_several_lines_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        fs::write(&path, "a\nquit=1").unwrap();
        assert!(read(&path).is_err());
    }
}
