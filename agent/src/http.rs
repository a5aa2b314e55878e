//! HTTP from inside a pod. The program is linked statically, so it can't use the C library to look up names
//! ([`names`]), and it brings root certificates for where the image has none.

pub(crate) mod names;

use std::{env, fs, time::Duration};

use ureq::{
    Agent, Proxy,
    config::{Config, ConfigBuilder},
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
    typestate::AgentScope,
    unversioned::transport::DefaultConnector,
};

/// How long a connection may take to be made, name and TLS included.
const CONNECT: Duration = Duration::from_secs(30);

/// How long a server may say nothing.
const SILENCE: Duration = Duration::from_mins(1);

/// The same for the service, which is near.
const SERVICE_CONNECT: Duration = Duration::from_secs(10);

/// How long a request to the service may take.
const SERVICE_ANSWER: Duration = Duration::from_secs(30);

/// Redirects that are followed.
const MAX_REDIRECTS: u32 = 5;

/// Where systems keep the certificates that they trust.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// A client for one step. `direct`: whatever proxy the environment names is for the outside, not for this.
pub(crate) fn client(direct: bool) -> Agent {
    let config = Config::builder()
        .max_redirects(MAX_REDIRECTS)
        .proxy(if direct { None } else { Proxy::try_from_env() })
        .timeout_connect(Some(CONNECT))
        .timeout_per_read(Some(SILENCE))
        .timeout_per_write(Some(SILENCE))
        .timeout_resolve(Some(CONNECT))
        .timeout_recv_response(Some(SILENCE));
    agent(config)
}

/// A client for small requests to the service, which are repeated until they get through.
pub(crate) fn to_service() -> Agent {
    let config = Config::builder()
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .timeout_connect(Some(SERVICE_CONNECT))
        .timeout_global(Some(SERVICE_ANSWER));
    agent(config)
}

fn agent(config: ConfigBuilder<AgentScope>) -> Agent {
    let tls = TlsConfig::builder().root_certs(roots()).build();
    let config = config
        .http_status_as_error(false)
        .tls_config(tls)
        .user_agent(concat!("kiln-agent/", env!("CARGO_PKG_VERSION")))
        .build();
    Agent::with_parts(config, DefaultConnector::default(), names::SystemNames)
}

/// The certificates that the image trusts, or else those that browsers do.
fn roots() -> RootCerts {
    let named = env::var_os("SSL_CERT_FILE").map(Into::into);
    let files = named.into_iter().chain(BUNDLES.map(std::path::PathBuf::from));
    for file in files {
        let Ok(text) = fs::read(file) else { continue };
        let found: Vec<Certificate<'static>> = parse_pem(&text)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        if !found.is_empty() {
            return RootCerts::from(found);
        }
    }
    RootCerts::WebPki
}
