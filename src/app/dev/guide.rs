//! What `kiln dev` says on standard output: where it is, that it works, and how to go on.

use std::{net::SocketAddr, path::Path, time::Instant};

use super::sample::{Caller, Sample, SampleError};

/// Talks to the person at the terminal.
pub(super) struct Guide<'a> {
    base: String,
    data: &'a Path,
    token: &'a str,
}

impl<'a> Guide<'a> {
    pub(super) fn new(address: SocketAddr, data: &'a Path, token: &'a str) -> Self {
        Self {
            base: format!("http://{address}"),
            data,
            token,
        }
    }

    /// Builds the sample, if there is one, and says how to do it again.
    pub(super) async fn show(&self, sample: Option<&Sample>) {
        let data = self.data.canonicalize().unwrap_or_else(|_| self.data.to_owned());
        println!("Kiln serves on {}. Its data are in {}.", self.base, data.display());
        let built = match sample {
            Some(sample) => match self.build(sample).await {
                Ok(id) => Some(id),
                Err(error) => {
                    println!("\nThe sample could not be built: {error}");
                    None
                }
            },
            None => None,
        };
        let (base, token) = (&self.base, self.token);
        println!(
            "\nPaste this into another terminal first:\n\n  export KILN={base} TOKEN={token}\n  \
             export KILN_URL=\"$KILN\" KILN_TOKEN=\"$TOKEN\"{}",
            path().unwrap_or_default()
        );
        if let (Some(sample), Some(id)) = (sample, built) {
            let folder = sample.folder.canonicalize().unwrap_or_else(|_| sample.folder.clone());
            let folder = quoted(&folder.to_string_lossy());
            let request = quoted(&sample.request().to_string());
            println!(
                "\nBuild it again, by the command line or by the API:\n\n  kiln build {folder} --no-push\n  \
                 curl -sS \"$KILN/v1/builds\" -H \"Authorization: Bearer $TOKEN\" \
                 -H 'Content-Type: application/json' -d {request}\n\
                 \nFollow a log; a build's other faces are /events and the build itself:\n\
                 \n  kiln logs -f {id}\n  \
                 curl -sSN \"$KILN/v1/builds/{id}/logs?follow=1\" -H \"Authorization: Bearer $TOKEN\"\n  \
                 curl -sS \"$KILN/v1/builds/{id}\" -H \"Authorization: Bearer $TOKEN\""
            );
        }
        println!(
            "\nSee all builds:\n\n  kiln list\n  curl -sS \"$KILN/v1/builds\" -H \"Authorization: Bearer $TOKEN\"\n\n\
             README.md goes on from here. Ctrl-C stops it."
        );
    }

    async fn build(&self, sample: &Sample) -> Result<String, SampleError> {
        let caller = Caller {
            base: self.base.clone(),
            token: self.token.to_owned(),
            client: reqwest::Client::builder().no_proxy().build()?,
        };
        let begun = Instant::now();
        let id = caller.create(&sample.request()).await?;
        println!("\nBuild {id} of {}:\n", sample.folder.display());
        caller.follow(&id).await?;
        println!("\nThe build {}", caller.verdict(&id, begun).await?);
        Ok(id)
    }
}

/// What a shell needs to find `kiln` by its name; nothing when it does already.
fn path() -> Option<String> {
    let program = std::env::current_exe().ok()?;
    let folder = program.parent()?;
    let found = std::env::split_paths(&std::env::var_os("PATH")?).any(|known| known == folder);
    (!found).then(|| format!(" PATH={}:\"$PATH\"", quoted(&folder.to_string_lossy())))
}

/// One word for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shells_read_back_what_was_quoted() {
        let text = r#"{"a": "it's \"$HOME\" `x`"}"#;
        let output = std::process::Command::new("sh")
            .args(["-c", &format!("printf %s {}", quoted(text))])
            .output()
            .expect("runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), text);
    }
}
