//! Which secrets a build asks for, and what each is for.

use std::collections::BTreeMap;

use super::{SecretForm, SecretKind, SecretMountId, SecretName};
use crate::domain::{
    failure::FailureCode,
    spec::{BuildSpec, Source},
};

/// What a build wants a secret for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// Reading the source.
    Source,
    /// Pulling and pushing; the index in `registry_credentials`.
    Registry(usize),
    /// A mount of the Dockerfile.
    Mount(&'a SecretMountId),
    /// The SSH agent of the Dockerfile.
    Ssh,
}

/// A secret that a build asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need<'a> {
    /// The secret.
    pub name: &'a SecretName,
    /// What for.
    pub purpose: Purpose<'a>,
}

impl Need<'_> {
    /// Its place in the request, as a JSON pointer.
    pub fn pointer(&self, listed: bool) -> String {
        match self.purpose {
            Purpose::Source => "/source/credentials".to_owned(),
            Purpose::Registry(index) if listed => format!("/registry_credentials/{index}"),
            Purpose::Registry(_) => "/registry_credentials".to_owned(),
            // An id holds nothing that would have to be escaped.
            Purpose::Mount(id) => format!("/secrets/{id}"),
            Purpose::Ssh => "/ssh".to_owned(),
        }
    }

    /// The kind that the secret must have.
    pub const fn kind(&self) -> SecretKind {
        match self.purpose {
            Purpose::Source | Purpose::Ssh => SecretKind::Git,
            Purpose::Registry(_) => SecretKind::Registry,
            Purpose::Mount(_) => SecretKind::Build,
        }
    }

    /// How the build fails without it.
    pub const fn failure(&self, spec: &BuildSpec) -> FailureCode {
        match self.purpose {
            Purpose::Source => FailureCode::SourceFailed,
            Purpose::Registry(_) if spec.push => FailureCode::PushFailed,
            Purpose::Registry(_) | Purpose::Mount(_) | Purpose::Ssh => FailureCode::BuildFailed,
        }
    }

    /// What is wrong when a secret of the right kind but this form is given, in words for the caller.
    pub fn objection(&self, spec: &BuildSpec, form: SecretForm) -> Option<String> {
        let name = self.name;
        let holds_key = form == SecretForm::SshKey;
        match (self.purpose, &spec.source) {
            (Purpose::Source, Source::Git { url, .. }) if url.is_ssh() && !holds_key => Some(format!(
                "`{name}` holds a password or token, which ssh doesn't take: use the repository's https URL, or a secret with `ssh_private_key` and `known_hosts`"
            )),
            (Purpose::Source, Source::Git { url, .. }) if !url.is_ssh() && holds_key => Some(format!(
                "`{name}` holds an SSH key, which is of no use with this URL: use the repository's ssh URL, or a secret with a password or token"
            )),
            (Purpose::Ssh, _) if !holds_key => Some(format!(
                "`{name}` holds no SSH key: expected a secret with `ssh_private_key` and `known_hosts`"
            )),
            _ => None,
        }
    }
}

impl BuildSpec {
    /// The secrets that the build asks for, in the order of the request's fields.
    pub fn needs(&self) -> Vec<Need<'_>> {
        let source = self.source.credentials().map(|name| (name, Purpose::Source));
        let registries = self.registry_credentials.iter().enumerate();
        let registries = registries.map(|(index, name)| (name, Purpose::Registry(index)));
        let mounts: &BTreeMap<_, _> = &self.secrets;
        let mounts = mounts.iter().map(|(id, name)| (name, Purpose::Mount(id)));
        let ssh = self.ssh.as_ref().map(|name| (name, Purpose::Ssh));
        source
            .into_iter()
            .chain(registries)
            .chain(mounts)
            .chain(ssh)
            .map(|(name, purpose)| Need { name, purpose })
            .collect()
    }
}
