//! Asks registries whether they hold what a builder says it pushed. A build can reach its builder, so the builder's
//! word alone isn't proof (OCI distribution-spec, "Pulling manifests").

use std::{collections::BTreeMap, sync::Once, time::Duration};

use reqwest::{
    Certificate, Client, Response, StatusCode,
    header::{ACCEPT, WWW_AUTHENTICATE},
};
use serde::Deserialize;

use super::registry::Registry;
use crate::domain::{
    failure::{Failure, FailureCode},
    secret::{Credentials, RegistryCredentials, SecretText},
    spec::{Digest, ImageRef},
};

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.docker.distribution.manifest.v2+json";
const TRIES: u32 = 3;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Compares digests with registries.
#[derive(Clone, Debug)]
pub struct Verifier {
    client: Client,
    /// For registries whose certificate isn't to be checked.
    insecure_client: Client,
    /// For registries with a certificate authority of their own, by host.
    own_clients: BTreeMap<String, Client>,
    registries: Vec<Registry>,
}

/// Why a digest could not be learned.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("the request failed")]
    Request(#[from] reqwest::Error),
    #[error("the registry answered {0}")]
    Status(StatusCode),
    #[error("the registry named no digest")]
    NoDigest,
}

/// The credentials for a registry, if there are any.
type Login<'l> = Option<&'l RegistryCredentials>;

/// What a request is made with.
enum Proof<'l> {
    Basic(&'l RegistryCredentials),
    Bearer(SecretText),
}

/// A token server's answer (distribution "token authentication").
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Verifier {
    /// A verifier that knows these registries; any other is asked over HTTPS.
    pub fn new(registries: Vec<Registry>) -> Result<Self, reqwest::Error> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // Fails only when another part of the process has chosen a provider already, which serves as well.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let builder = || Client::builder().timeout(TIMEOUT).user_agent("kiln");
        let mut own_clients = BTreeMap::new();
        for registry in &registries {
            if let Some(pem) = &registry.ca {
                let certificates = Certificate::from_pem_bundle(pem.as_bytes())?;
                own_clients.insert(registry.host.clone(), builder().tls_certs_merge(certificates).build()?);
            }
        }
        Ok(Self {
            own_clients,
            client: builder().build()?,
            insecure_client: builder().tls_danger_accept_invalid_certs(true).build()?,
            registries,
        })
    }

    /// Checks that every image's registry holds this digest under the image's tag.
    pub async fn verify(&self, images: &[ImageRef], digest: &Digest, credentials: &Credentials) -> Result<(), Failure> {
        for image in images {
            let registry = self
                .registries
                .iter()
                .find(|registry| registry.host == image.registry());
            if registry.is_some_and(|registry| !registry.verify) {
                continue;
            }
            let insecure = registry.is_some_and(|registry| registry.insecure);
            let found = self.ask(image, insecure, credentials.registry(image.registry())).await.map_err(|error| {
                tracing::warn!(image = %image, error = ?error, "the registry could not confirm a pushed image");
                Failure::new(
                    FailureCode::PushFailed,
                    format!(
                        "The builder pushed {image} but its registry could not confirm it: {error}. It is asked with \
                         the build's own credentials. If they may only write, the operator can set `verify = false` for that registry."
                    ),
                )
            })?;
            if found != *digest {
                return Err(Failure::new(
                    FailureCode::PushFailed,
                    format!(
                        "The builder says that it pushed {image} as {digest}, but the registry holds {found} under that tag. \
                         Another push may have moved it in the meantime: build again, or give each build a tag of its own."
                    ),
                ));
            }
        }
        Ok(())
    }

    async fn ask(&self, image: &ImageRef, insecure: bool, login: Login<'_>) -> Result<Digest, AskError> {
        let mut backoff = Duration::from_millis(200);
        let mut tries = 1;
        loop {
            match self.ask_once(image, insecure, login).await {
                Err(error) if tries < TRIES && is_transient(&error) => {
                    tokio::time::sleep(backoff).await;
                    backoff *= 2;
                    tries += 1;
                }
                outcome => return outcome,
            }
        }
    }

    async fn ask_once(&self, image: &ImageRef, insecure: bool, login: Login<'_>) -> Result<Digest, AskError> {
        let https = self.head(image, "https", insecure, None).await;
        let (scheme, mut response) = match https {
            // Insecure registries usually speak plain HTTP.
            Err(_) if insecure => ("http", self.head(image, "http", insecure, None).await?),
            other => ("https", other?),
        };
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(proof) = self.proof(image, &response, scheme, insecure, login).await?
        {
            response = self.head(image, scheme, insecure, Some(&proof)).await?;
        }
        if !response.status().is_success() {
            return Err(AskError::Status(response.status()));
        }
        response
            .headers()
            .get("docker-content-digest")
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .ok_or(AskError::NoDigest)
    }

    async fn head(
        &self,
        image: &ImageRef,
        scheme: &str,
        insecure: bool,
        proof: Option<&Proof<'_>>,
    ) -> Result<Response, AskError> {
        // Docker Hub's API lives on another host than its names.
        let host = match image.registry() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let url = format!("{scheme}://{host}/v2/{}/manifests/{}", image.repository(), image.tag());
        let mut request = self
            .client(image.registry(), insecure)
            .head(url)
            .header(ACCEPT, MANIFESTS);
        match proof {
            Some(Proof::Bearer(token)) => request = request.bearer_auth(token.expose()),
            Some(Proof::Basic(login)) => {
                request = request.basic_auth(login.username.expose(), Some(login.password.expose()));
            }
            None => {}
        }
        Ok(request.send().await?)
    }

    /// What the registry's challenge asks for: the login itself, or a token for it. Without a login, a token for nobody.
    async fn proof<'l>(
        &self,
        image: &ImageRef,
        refused: &Response,
        scheme: &str,
        insecure: bool,
        login: Login<'l>,
    ) -> Result<Option<Proof<'l>>, AskError> {
        let challenges = refused.headers().get_all(WWW_AUTHENTICATE);
        let challenges: Vec<&str> = challenges.iter().filter_map(|value| value.to_str().ok()).collect();
        let Some(challenge) = challenges.iter().find_map(|text| parse_challenge(text)) else {
            let basic = challenges.iter().any(|text| is_basic(text));
            return Ok(login.filter(|_| basic).map(Proof::Basic));
        };
        let mut request = self
            .client(image.registry(), insecure)
            .get(&challenge.realm)
            .query(&challenge.parameters);
        // A registry that is reached safely can't send the login elsewhere in the clear.
        let safe = scheme == "http" || challenge.realm.starts_with("https://");
        if let Some(login) = login.filter(|_| safe) {
            request = request.basic_auth(login.username.expose(), Some(login.password.expose()));
        }
        let answer: TokenAnswer = request.send().await?.error_for_status()?.json().await?;
        Ok(answer
            .token
            .or(answer.access_token)
            .map(|token| Proof::Bearer(SecretText::new(token))))
    }

    fn client(&self, registry: &str, insecure: bool) -> &Client {
        if insecure {
            return &self.insecure_client;
        }
        self.own_clients.get(registry).unwrap_or(&self.client)
    }
}

fn is_transient(error: &AskError) -> bool {
    match error {
        AskError::Request(_) => true,
        AskError::Status(status) => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
        AskError::NoDigest => false,
    }
}

/// Whether a challenge asks for user and password (RFC 7617).
fn is_basic(header: &str) -> bool {
    header
        .get(..5)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("basic"))
}

/// Where to ask for a token.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    realm: String,
    parameters: Vec<(String, String)>,
}

/// Reads `Bearer realm="…",service="…",scope="…"` (RFC 6750); other schemes are of no use here.
fn parse_challenge(header: &str) -> Option<Challenge> {
    let mut rest = header
        .get(..7)
        .filter(|scheme| scheme.eq_ignore_ascii_case("bearer "))
        .and_then(|_| header.get(7..))?;
    let mut realm = None;
    let mut parameters = Vec::new();
    while let Some((key, after)) = rest.split_once("=\"") {
        let (value, after) = after.split_once('"')?;
        let key = key.trim_matches([',', ' ']);
        if key.eq_ignore_ascii_case("realm") {
            realm = Some(value.to_owned());
        } else if matches!(key, "service" | "scope") {
            parameters.push((key.to_owned(), value.to_owned()));
        }
        rest = after;
    }
    Some(Challenge {
        realm: realm?,
        parameters,
    })
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    const DIGEST: &str = "sha256:6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b";
    /// User `ann`, password `p:a ss`.
    const LOGIN: &str = "Basic YW5uOnA6YSBzcw==";

    /// What a registry on the loopback address wants to see.
    #[derive(Clone, Copy, PartialEq)]
    enum Wants {
        Password,
        /// A token, which its own `/token` gives out for the password.
        Token,
    }

    /// Answers one request after the other; says where it listens.
    async fn registry(wants: Wants) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let host = listener.local_addr().expect("an address").to_string();
        let own = host.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                // A client tries TLS first, whose first byte this is.
                while !head.ends_with(b"\r\n\r\n") && head.first() != Some(&0x16) {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                if head.first() == Some(&0x16) {
                    continue;
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let authorized = |expected: &str| {
                    let mut lines = head.lines();
                    lines.any(|line| {
                        line.to_ascii_lowercase().starts_with("authorization: ") && line.ends_with(expected)
                    })
                };
                let answer = if head.starts_with("GET /token?") && authorized(LOGIN) {
                    "200 OK\r\ncontent-length: 15\r\n\r\n{\"token\": \"t0\"}".to_owned()
                } else if head.starts_with("GET /token?") {
                    "401 Unauthorized\r\ncontent-length: 0\r\n\r\n".to_owned()
                } else if authorized(if wants == Wants::Password { LOGIN } else { "Bearer t0" }) {
                    format!("200 OK\r\ndocker-content-digest: {DIGEST}\r\n\r\n")
                } else {
                    let challenge = match wants {
                        Wants::Password => "Basic realm=\"x\"".to_owned(),
                        Wants::Token => format!("Bearer realm=\"http://{own}/token\",service=\"x\",scope=\"y\""),
                    };
                    format!("401 Unauthorized\r\nwww-authenticate: {challenge}\r\ncontent-length: 0\r\n\r\n")
                };
                // A client that goes away is no concern of the server's.
                let answer = format!("HTTP/1.1 {}", answer.replacen("\r\n", "\r\nconnection: close\r\n", 1));
                drop(stream.write_all(answer.as_bytes()).await);
            }
        });
        host
    }

    #[tokio::test]
    async fn a_registry_is_asked_with_the_builds_own_login() {
        for wants in [Wants::Password, Wants::Token] {
            let host = registry(wants).await;
            let verifier = Verifier::new(vec![Registry {
                ca: None,
                ca_file: None,
                host: host.clone(),
                mirrors: Vec::new(),
                insecure: true,
                verify: true,
            }])
            .expect("a client");
            let login = |registry: &str, password: &str| Credentials {
                registries: vec![RegistryCredentials {
                    registry: registry.parse().expect("a host"),
                    username: SecretText::new("ann"),
                    password: SecretText::new(password),
                }],
                ..Credentials::default()
            };
            let image: ImageRef = format!("{host}/app:1").parse().expect("an image");
            let digest = DIGEST.parse().expect("a digest");
            let ask = async |credentials: &Credentials| {
                verifier
                    .verify(std::slice::from_ref(&image), &digest, credentials)
                    .await
            };
            assert_eq!(ask(&login(&host, "p:a ss")).await, Ok(()));
            for refused in [
                login(&host, "wrong"),
                login("r.example", "p:a ss"),
                Credentials::default(),
            ] {
                let failure = ask(&refused).await.expect_err("refused");
                assert_eq!(failure.code, FailureCode::PushFailed);
                assert!(failure.message.contains("could not confirm"), "{}", failure.message);
            }
        }
    }

    #[test]
    fn challenges_are_read() {
        let challenge = parse_challenge(
            r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#,
        )
        .expect("a bearer challenge");
        assert_eq!(challenge.realm, "https://auth.example/token");
        assert_eq!(
            challenge.parameters,
            [
                ("service".to_owned(), "registry.example".to_owned()),
                ("scope".to_owned(), "repository:a/b:pull,push".to_owned()),
            ]
        );
        assert_eq!(parse_challenge("Basic realm=\"x\""), None);
        assert!(is_basic("Basic realm=\"x\"") && is_basic("basic") && !is_basic("Bearer realm=\"x\"") && !is_basic(""));
        assert_eq!(parse_challenge("Bearer service=\"x\""), None);
        assert_eq!(parse_challenge(""), None);
    }
}
