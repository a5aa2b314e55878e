//! Registries that tell of pushed images, so that what is built on them can be built again: Distribution
//! (<https://distribution.github.io/distribution/about/notifications/>), Harbor
//! (<https://goharbor.io/docs/main/working-with-projects/project-configuration/configure-webhooks/>), Docker Hub
//! (<https://docs.docker.com/docker-hub/repos/manage/webhooks/>) and Quay
//! (<https://docs.redhat.com/en/documentation/red_hat_quay/>).

use chrono::{DateTime, Utc};

use super::{
    Incoming, Malformed, Reading, Sender,
    event::{Event, EventKind},
    payload::Payload,
    signature::same,
};

/// Most images that one delivery may tell of.
const MAX_EVENTS: usize = 50;

pub(super) struct Registry;

impl Sender for Registry {
    /// None of them signs. Distribution and Harbor can send a header, Docker Hub and Quay have the address only.
    fn verify(&self, secret: &str, incoming: &Incoming<'_>, _: DateTime<Utc>) -> bool {
        let header = incoming.header("authorization").unwrap_or_default();
        let bearer = header.strip_prefix("Bearer ").unwrap_or(header);
        // A plus sign that wasn't escaped arrives as a space.
        let token = incoming.token.as_deref().unwrap_or_default().replace(' ', "+");
        same(secret, bearer) | same(secret, &token)
    }

    fn delivery_id(&self, _: &Incoming<'_>) -> Option<String> {
        None
    }

    fn read(&self, incoming: &Incoming<'_>) -> Result<Reading, Malformed> {
        let payload = Payload::of(incoming)?;
        let images = if payload.has("/events") {
            distribution(&payload)?
        } else if payload.has("/event_data") {
            harbor(&payload)?
        } else if payload.has("/push_data") {
            docker_hub(&payload)?
        } else if payload.has("/updated_tags") {
            quay(&payload)?
        } else {
            return Err(Malformed(
                "the payload is none of Distribution, Harbor, Docker Hub or Quay".to_owned(),
            ));
        };
        Ok(match images.len() {
            0 => Reading::Nothing("no image with a tag was pushed".to_owned()),
            1..=MAX_EVENTS => Reading::Events(images),
            _ => return Err(Malformed(format!("more than {MAX_EVENTS} images"))),
        })
    }
}

fn image(name: String, tag: String, digest: Option<String>, at: Option<String>) -> Event {
    Event {
        tag: Some(tag),
        digest,
        previous: at,
        ..Event::new(EventKind::Image, name)
    }
}

fn distribution(payload: &Payload) -> Result<Vec<Event>, Malformed> {
    let mut images = Vec::new();
    for event in payload.list("/events") {
        let event = Payload::part(event);
        let (Some("push"), Some(tag)) = (event.text("/action").as_deref(), event.text("/target/tag")) else {
            continue;
        };
        let repository = event.required("/target/repository")?;
        let name = match event.text("/request/host") {
            Some(host) => format!("{host}/{repository}"),
            None => repository,
        };
        images.push(image(name, tag, event.text("/target/digest"), None));
    }
    Ok(images)
}

fn harbor(payload: &Payload) -> Result<Vec<Event>, Malformed> {
    let kind = payload.required("/type")?;
    if kind != "PUSH_ARTIFACT" {
        return Ok(Vec::new());
    }
    let repository = payload.required("/event_data/repository/repo_full_name")?;
    let resources = payload.list("/event_data/resources").iter().map(Payload::part);
    Ok(resources
        .filter_map(|resource| {
            let tag = resource.text("/tag")?;
            // The address has the registry's host in front.
            let address = resource.text("/resource_url");
            let host = address
                .as_deref()
                .and_then(|url| url.strip_suffix(&format!("/{repository}:{tag}")));
            let name = host.map_or_else(|| repository.clone(), |host| format!("{host}/{repository}"));
            Some(image(name, tag, resource.text("/digest"), None))
        })
        .collect())
}

/// There is no digest: the time of the push tells one from the next.
fn docker_hub(payload: &Payload) -> Result<Vec<Event>, Malformed> {
    let name = format!("docker.io/{}", payload.required("/repository/repo_name")?);
    let at = payload.number("/push_data/pushed_at").map(|at| at.to_string());
    Ok(vec![image(name, payload.required("/push_data/tag")?, None, at)])
}

/// There is no digest and no time either: each delivery is a push of its own.
fn quay(payload: &Payload) -> Result<Vec<Event>, Malformed> {
    let name = payload.required("/docker_url")?;
    let tags = payload.list("/updated_tags").iter();
    let tags = tags.filter_map(|tag| Payload::part(tag).text(""));
    Ok(tags.map(|tag| image(name.clone(), tag, None, None)).collect())
}
