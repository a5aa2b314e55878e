//! Traces by OTLP over HTTP: a span for each request and one for each attempt, as protobuf to `/v1/traces`.

use std::{future::Future, pin::Pin, time::Duration};

use opentelemetry::{global, trace::TracerProvider as _};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tokio::runtime::Handle;
use tracing::{Level, Subscriber};
use tracing_subscriber::{Layer, filter::dynamic_filter_fn, registry::LookupSpan};
use url::Url;

use crate::app::config::ConfigError;

/// How long the collector may take. Spans that can't be delivered are dropped: traces are not what Kiln is for.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The way of spans to the collector. Dropping it sends what is left; not from within the runtime.
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Spans go to this collector. Where the address has no path, it gets OTLP's own.
    pub(super) fn to(endpoint: &Url, runtime: &Handle) -> Result<Self, ConfigError> {
        let invalid = |error: &dyn std::fmt::Display| {
            ConfigError::Invalid(format!("`telemetry.otlp_endpoint` can't be used: {error}"))
        };
        let mut endpoint = endpoint.clone();
        if endpoint.path() == "/" {
            endpoint.set_path("/v1/traces");
        }
        // Others may have installed it; it is the same for all.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client {
            http: reqwest::Client::builder()
                .timeout(TIMEOUT)
                .build()
                .map_err(|error| invalid(&error))?,
            runtime: runtime.clone(),
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(TIMEOUT)
            .with_endpoint(endpoint)
            .build()
            .map_err(|error| invalid(&error))?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(Resource::builder().with_service_name("kiln").build())
            .build();
        // Traces that callers have begun go on here.
        global::set_text_map_propagator(TraceContextPropagator::new());
        Ok(Self(provider))
    }

    /// What turns spans of this program into spans of traces.
    pub(super) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> + use<S> {
        // A filter whose answers are cached by callsite can leave the filter of the log lines with a stale one
        // (tokio-rs/tracing#2519): spans then go missing from either.
        let wanted =
            dynamic_filter_fn(|metadata, _| metadata.target().starts_with("kiln") && *metadata.level() <= Level::INFO);
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("kiln"))
            .with_filter(wanted)
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(error = %error, "the last traces could not be sent");
        }
    }
}

/// Sends on the service's runtime what the exporter's own thread hands in.
#[derive(Debug)]
struct Client {
    http: reqwest::Client,
    runtime: Handle,
}

impl HttpClient for Client {
    fn send_bytes<'a, 'f>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        'a: 'f,
        Self: 'f,
    {
        let http = self.http.clone();
        let sent = self.runtime.spawn(async move {
            let answer = http.execute(request.try_into()?).await?;
            let mut response = Response::builder().status(answer.status());
            if let Some(headers) = response.headers_mut() {
                headers.extend(answer.headers().clone());
            }
            Ok(response.body(answer.bytes().await?)?)
        });
        Box::pin(async move { sent.await? })
    }
}
