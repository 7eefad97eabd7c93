//! One transport to the API server: whom to trust, who we are and which way to go, put together.
//!
//! Place in the flow: [`super::Client`] builds its transport from this, at start and whenever
//! credentials may have changed. [`super::access`] reads the files, [`super::proxy`] decides about the
//! way, [`super::dial`] goes it; `kube` runs exec plugins and adds headers.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, COOKIE, LOCATION};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use kube::client::{AuthError, Body, ConfigExt};
use rustls::ClientConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder, service_fn};
use tracing::warn;

use super::access::{Access, ConnectionError, Files, Trust};
use super::crypto;
use super::dial::{self, Connector, Pings, Tls};
use super::proxy::{Environment, Route};
use super::trust::{self, Anchors, Anyone, Bundle};

/// Sends one request with base URL and credentials added.
pub(super) type Transport =
    BoxCloneSyncService<http::Request<Body>, http::Response<Incoming>, BoxError>;

/// A transport and what has to be known about it.
pub(super) struct Connected {
    pub(super) transport: Transport,
    /// `host:port` of the server, the label of metrics.
    pub(super) host: String,
    /// Header for the token of a file.
    pub(super) authorization: Option<HeaderValue>,
    /// What may be replaced.
    pub(super) files: Files,
    /// The credentials are still to come from an exec plugin.
    pub(super) awaits_plugin: bool,
}

/// Where the API server is and how to talk to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// `clientConnection.kubeconfig`. Without it and without `master`, the service account of the
    /// pod is used (section 10.5).
    pub kubeconfig: Option<PathBuf>,
    /// `--master`: replaces the kubeconfig's server; alone, it is used without credentials.
    pub master: Option<String>,
    /// `clientConnection.contentType`; empty means JSON.
    pub content_type: String,
    /// `clientConnection.acceptContentTypes`; empty means `content_type` and anything else.
    pub accept_content_types: String,
    /// `clientConnection.qps`: 0 means 5, negative means unlimited.
    pub qps: f32,
    /// `clientConnection.burst`: 0 means 10.
    pub burst: i32,
    /// See [`super::user_agent`].
    pub user_agent: String,
}

impl ConnectionError {
    fn plugin(command: &str, error: AuthError) -> ConnectionError {
        let reason = match error {
            AuthError::AuthExecStart(error) => format!("cannot be run: {error}"),
            AuthError::AuthExecRun { out, .. } => {
                let said = String::from_utf8_lossy(&out.stderr);
                let said = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
                format!("{} {said:.200}", out.status).trim_end().to_owned()
            }
            AuthError::AuthExecParse(_) => "its output is no ExecCredential".to_owned(),
            other => other.to_string(),
        };
        ConnectionError::Plugin { command: command.to_owned(), reason }
    }
}

impl Options {
    /// The `Accept` header: what is preferred, and anything else after it, unless the user names the
    /// list.
    pub(super) fn accept(&self) -> String {
        match (self.accept_content_types.as_str(), self.content_type.as_str()) {
            ("", "") => "application/json, */*".to_owned(),
            ("", preferred) => format!("{preferred}, */*"),
            (list, _) => list.to_owned(),
        }
    }

    /// What [`Options::connect`] brings without running an exec plugin: as in client-go, that is left
    /// to the first request. Blocks on files.
    pub(super) fn prepare(&self) -> Result<Connected, ConnectionError> {
        let mut access = self.access()?;
        let awaits_plugin = access.config.auth_info.exec.take().is_some();
        Ok(Connected { awaits_plugin, ..connected(access, http2())? })
    }

    /// Reads all files and builds a transport. Blocks on files and exec plugins.
    pub(super) fn connect(&self) -> Result<Connected, ConnectionError> {
        connected(self.access()?, http2())
    }

    fn access(&self) -> Result<Access, ConnectionError> {
        match (&self.kubeconfig, &self.master) {
            (None, None) => Access::of_pod(),
            (None, Some(master)) => Access::to_master(master),
            (Some(path), master) => Access::by_kubeconfig(path, master.as_deref()),
        }
    }
}

/// `http2`: it is spoken where the server speaks it.
pub(super) fn connected(mut access: Access, http2: bool) -> Result<Connected, ConnectionError> {
    let authorization = access.files.authorization();
    if authorization.is_some() {
        access.config.auth_info.token = None;
    }
    let host = access.config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
    let transport = transport(&access, http2)?;
    let files = access.files;
    Ok(Connected { transport, host, authorization, files, awaits_plugin: false })
}

/// The way to the API server: the kubeconfig's proxy, else the environment's (kubeadm hands its own
/// environment down to kube-proxy).
fn route(access: &Access) -> Route {
    if let Some(proxy) = &access.proxy {
        return Route::Through(proxy.clone());
    }
    let environment = Environment::read(|name| std::env::var(name).ok());
    environment.route(&access.config.cluster_url).unwrap_or_else(|bad| {
        warn!(variable = bad.named_by, "not a URL of a proxy: going to the API server directly");
        Route::Direct
    })
}

fn verifier(trust: &Trust) -> Result<Arc<dyn ServerCertVerifier>, ConnectionError> {
    let anchors = match trust {
        Trust::Anyone => return Ok(Arc::new(Anyone)),
        Trust::Bundle(name, text) => {
            let bundle = Bundle::parse(text);
            for block in bundle.broken {
                warn!(bundle = name, block, "skipped a block that is no certificate");
            }
            if bundle.certificates.is_empty() {
                return Err(ConnectionError::NoAnchor(name.clone()));
            }
            bundle.certificates
        }
        Trust::System => {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                // As in Go, this is told by each handshake and ends nothing.
                warn!("the kubeconfig names no CA, and the system has none that could stand in");
            }
            found.certs
        }
    };
    Ok(Arc::new(Anchors::new(anchors)))
}

/// client-go's variable.
fn http2() -> bool {
    std::env::var_os("DISABLE_HTTP2").is_none_or(|value| value.is_empty())
}

/// `plugin`: an exec plugin runs, and may bring a certificate.
fn tls(access: &Access, plugin: bool, http2: bool) -> Result<Tls, ConnectionError> {
    let config = &access.config;
    let server = || config.cluster_url.clone();
    let identity = |source: Box<dyn Error + Send + Sync>| ConnectionError::Identity {
        server: server(),
        source,
    };
    let builder = ClientConfig::builder_with_provider(crypto::provider())
        .with_safe_default_protocol_versions()
        .expect("ring knows TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier(&access.trust)?);
    let mut tls = match &access.identity {
        Some((certificates, key)) => {
            let chain = trust::certificates(certificates);
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| identity(e.into()))?;
            let client = crypto::client_key(chain, &key).map_err(|e| identity(e.into()))?;
            builder.with_client_cert_resolver(client)
        }
        None => builder.with_no_client_auth(),
    };
    if plugin {
        // `kube` alone runs plugins.
        let mut plugin = config.clone();
        plugin.root_cert = Some(Vec::new());
        plugin.accept_invalid_certs = true;
        let plugin = plugin.rustls_client_config();
        let plugin = plugin.map_err(|source| identity(source.into()))?;
        if plugin.client_auth_cert_resolver.has_certs() {
            tls.client_auth_cert_resolver = plugin.client_auth_cert_resolver;
        }
    }
    let name = config.tls_server_name.clone().filter(|name| !name.is_empty());
    let server_name = name.map(|name| {
        let parsed = ServerName::try_from(name.clone());
        parsed.map_err(|source| ConnectionError::ServerName { name, source })
    });
    Ok(Tls { config: tls, server_name: server_name.transpose()?, http2 })
}

/// client-go's variables for connections that became silent.
fn pings() -> Pings {
    let seconds = |name| std::env::var(name).ok()?.parse().ok().map(Duration::from_secs);
    let usual = Pings::default();
    Pings {
        after: seconds("HTTP2_READ_IDLE_TIMEOUT_SECONDS").unwrap_or(usual.after),
        timeout: seconds("HTTP2_PING_TIMEOUT_SECONDS").unwrap_or(usual.timeout),
    }
}

/// A plugin that runs again because its token expired fails within `kube`, which tells all it wrote.
fn of_plugin(error: BoxError, command: Option<&str>) -> BoxError {
    match (error.downcast::<AuthError>(), command) {
        (Ok(error), Some(command)) => ConnectionError::plugin(command, *error).into(),
        (Ok(error), None) => error,
        (Err(error), _) => error,
    }
}

/// `kube`'s layers around our connector. `kube`'s own stack would retry and log by itself; here the
/// watch decides about retries.
fn transport(access: &Access, http2: bool) -> Result<Transport, ConnectionError> {
    let config = &access.config;
    let command =
        config.auth_info.exec.as_ref().map(|exec| exec.command.clone().unwrap_or_default());
    let refreshed_by = command.clone();
    let failed = |source| match (source, &command) {
        (kube::Error::Auth(error), Some(command)) => ConnectionError::plugin(command, error),
        (source, _) => {
            let server = config.cluster_url.clone();
            ConnectionError::Credentials { server, source: Box::new(source) }
        }
    };
    let credentials = config.auth_layer().map_err(failed)?;
    let route = route(access);
    let is_https = config.cluster_url.scheme() == Some(&http::uri::Scheme::HTTPS);
    let to_proxy = match &route {
        Route::Through(proxy) if !is_https => proxy.authorization(),
        _ => None,
    };
    let connector = dial::connector(
        is_https,
        &route,
        &tls(access, command.is_some() && credentials.is_none(), http2)?,
    );
    let client = dial::client(connector, pings());
    Ok(BoxCloneSyncService::new(
        ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .map_err(move |error| of_plugin(error, refreshed_by.as_deref()))
            .option_layer(credentials)
            .layer(config.extra_headers_layer().map_err(failed)?)
            .map_request(move |mut request: http::Request<Body>| {
                if let Some(value) = &to_proxy {
                    request.headers_mut().insert(http::header::PROXY_AUTHORIZATION, value.clone());
                }
                request
            })
            .service(service_fn(move |request| follow(client.clone(), request))),
    ))
}

// Redirects, which balancers answer with and Go follows.

/// Go's bound.
const MOST: usize = 10;

/// Sends a request, and again to wherever it is sent; what writes is sent once.
pub(super) async fn follow(
    client: Client<Connector, Body>,
    request: Request<Body>,
) -> Result<Response<Incoming>, BoxError> {
    let method = request.method().clone();
    let (mut uri, mut headers) = (request.uri().clone(), request.headers().clone());
    let mut answer = client.request(request).await?;
    for _ in 0..MOST {
        let Some(next) = target(&answer, &uri).filter(|_| method == Method::GET) else { break };
        if next.authority() != uri.authority() || next.scheme() != uri.scheme() {
            forget_credentials(&mut headers);
        }
        uri = next;
        let mut request = Request::get(uri.clone()).body(Body::empty())?;
        request.headers_mut().clone_from(&headers);
        answer = client.request(request).await?;
    }
    Ok(answer)
}

fn forget_credentials(headers: &mut HeaderMap) {
    headers.remove(AUTHORIZATION);
    headers.remove(COOKIE);
}

/// Where an answer sends to: another URL, or another path of this one.
fn target(answer: &Response<Incoming>, uri: &Uri) -> Option<Uri> {
    if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location: Uri = answer.headers().get(LOCATION)?.to_str().ok()?.parse().ok()?;
    if location.scheme().is_some() {
        return Some(location);
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = location.into_parts().path_and_query;
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(content_type: &str, accept: &str) -> Options {
        Options {
            kubeconfig: None,
            master: None,
            content_type: content_type.into(),
            accept_content_types: accept.into(),
            qps: 5.0,
            burst: 10,
            user_agent: String::new(),
        }
    }

    #[test]
    fn accept_header_follows_the_configuration() {
        let protobuf = "application/vnd.kubernetes.protobuf";
        let cases = [
            (protobuf, "", "application/vnd.kubernetes.protobuf, */*"),
            ("", "", "application/json, */*"),
            (protobuf, "application/json", "application/json"),
        ];
        for (content_type, accept, want) in cases {
            assert_eq!(options(content_type, accept).accept(), want);
        }
    }
}
