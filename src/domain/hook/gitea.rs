//! Gitea (<https://docs.gitea.com/usage/repository/webhooks>) and Forgejo
//! (<https://forgejo.org/docs/latest/user/webhooks/>).

use chrono::{DateTime, Utc};

use super::{Incoming, Malformed, Reading, Sender, github, payload::Payload, signature::is_hex_mac};

pub(super) struct Gitea;

/// A header that Forgejo sends under its own name, too.
fn header<'i>(incoming: &'i Incoming<'_>, forgejo: &str, gitea: &str) -> Option<&'i str> {
    incoming.header(forgejo).or_else(|| incoming.header(gitea))
}

impl Sender for Gitea {
    fn verify(&self, secret: &str, incoming: &Incoming<'_>, _: DateTime<Utc>) -> bool {
        let signature = header(incoming, "x-forgejo-signature", "x-gitea-signature").unwrap_or_default();
        is_hex_mac(secret, incoming.body, "", signature)
    }

    fn delivery_id(&self, incoming: &Incoming<'_>) -> Option<String> {
        header(incoming, "x-forgejo-delivery", "x-gitea-delivery").map(str::to_owned)
    }

    fn read(&self, incoming: &Incoming<'_>) -> Result<Reading, Malformed> {
        let payload = Payload::of(incoming)?;
        match header(incoming, "x-forgejo-event", "x-gitea-event") {
            Some("push") => github::push(&payload, files(&payload)),
            Some("pull_request") => github::pull_request(&payload, &["opened", "reopened", "synchronized"]),
            Some("release") => github::release(&payload),
            Some(other) => Ok(Reading::Nothing(format!("nothing is built of the event `{other}`"))),
            None => Err(Malformed("the header `X-Gitea-Event` is missing".to_owned())),
        }
    }
}

/// The changed files, where the payload has all of them: it lists some of the commits, and says how many there are. Of
/// a new branch it lists what it has beyond the default branch.
fn files(payload: &Payload) -> Option<Vec<String>> {
    let listed = u64::try_from(payload.list("/commits").len()).ok();
    let known = payload.commit("/before").is_ok_and(|before| before.is_some());
    let whole = known && listed.is_some() && payload.number("/total_commits") == listed;
    whole.then(|| payload.files("/commits")).flatten()
}
