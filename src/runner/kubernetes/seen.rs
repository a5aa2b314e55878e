//! Pods as the watch holds them: what is observed of them, and no more.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use kube::{Resource, api::ObjectMeta, core::NamespaceResourceScope};
use serde::{Deserialize, Deserializer};

use super::pod;

/// A pod without what nobody looks at. Its plan alone may be a quarter of a megabyte, and a listing holds a page of pods.
#[derive(Clone, Debug)]
pub(super) struct SeenPod(pub(super) Pod);

impl<'de> Deserialize<'de> for SeenPod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Pod::deserialize(deserializer).map(strip).map(Self)
    }
}

impl Resource for SeenPod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        Pod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        Pod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.0.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0.metadata
    }
}

fn strip(mut pod: Pod) -> Pod {
    pod.metadata.managed_fields = None;
    pod.metadata.owner_references = None;
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.retain(|key, _| key == pod::STOPPED);
    }
    let named = |containers: Vec<Container>| {
        let named = containers.into_iter().map(|container| Container {
            name: container.name,
            ..Container::default()
        });
        named.collect::<Vec<_>>()
    };
    pod.spec = pod.spec.map(|spec| PodSpec {
        node_name: spec.node_name,
        init_containers: spec.init_containers.map(named),
        ..PodSpec::default()
    });
    pod
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::spec::Builder,
        runner::{
            builder::{credentials::CredentialFiles, tests::assignment},
            kubernetes::{config::Config, index::Handle, observe::observe},
        },
    };

    #[test]
    fn what_is_observed_stays_and_little_else() {
        let assignment = assignment(Builder::Buildkit);
        let config = Config::default();
        let mut made = pod::build(&config, &[], &assignment, &CredentialFiles::default()).unwrap();
        made.metadata.uid = Some("uid".to_owned());
        made.metadata.resource_version = Some("7".to_owned());
        let annotations = made.metadata.annotations.as_mut().unwrap();
        annotations.insert(pod::STOPPED.to_owned(), "true".to_owned());
        annotations.insert(pod::PLAN.to_owned(), "x".repeat(200 << 10));
        made.spec.as_mut().unwrap().node_name = Some("node1".to_owned());
        made.status =
            serde_json::from_value(serde_json::json!({"phase": "Failed", "reason": "DeadlineExceeded"})).unwrap();

        let text = serde_json::to_string(&made).unwrap();
        let SeenPod(seen) = serde_json::from_str(&text).unwrap();
        assert_eq!(observe(&seen), observe(&made));
        assert_eq!(Handle::of(&seen), Handle::of(&made));
        assert_eq!(pod::attempt(&seen), Some(assignment.attempt));
        assert_eq!(pod::is_stopped(&seen), pod::is_stopped(&made));
        assert_eq!(seen.metadata.resource_version.as_deref(), Some("7"));
        let left = serde_json::to_string(&seen).unwrap().len();
        assert!(left < 1500, "{left} bytes of {}", text.len());
    }
}
