//! How the API server is reached: kubeconfig, `--master`, or the pod's own service account.
//!
//! Place in the flow: [`super::Client`] builds its transport from this, at start and whenever
//! credentials may have changed. `kube` reads the files, runs exec plugins and does TLS.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::body::Incoming;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioExecutor;
use kube::Config;
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder};

/// Sends one request with base URL and credentials added.
pub(super) type Transport =
    BoxCloneSyncService<http::Request<Body>, http::Response<Incoming>, BoxError>;

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

/// Why no connection could be set up.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// Neither kubeconfig nor master is set, and this is no pod.
    #[error("no kubeconfig and no master given, and the in-cluster configuration is unusable")]
    InCluster(#[source] kube::config::InClusterError),
    /// The kubeconfig cannot be read or says too little.
    #[error("cannot load kubeconfig {}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KubeconfigError,
    },
    /// The kubeconfig has not the shape of one. What stands there is not quoted: it may be a secret.
    #[error("cannot load kubeconfig {}: malformed at line {line}, column {column}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Counted from 1; 0 if the place is not known.
        line: u64,
        /// Likewise.
        column: u64,
    },
    /// `--master` is no URL.
    #[error("master {master:?} is not a URL")]
    Master {
        /// As given.
        master: String,
        /// What is wrong with it.
        #[source]
        source: http::uri::InvalidUri,
    },
    /// Certificates, keys or tokens cannot be used.
    #[error("cannot use the credentials for {server}")]
    Credentials {
        /// The API server.
        server: http::Uri,
        /// The certificate, key, token or plugin at fault.
        #[source]
        source: Box<kube::Error>,
    },
    /// The proxy's URL in the kubeconfig or in `HTTPS_PROXY` has a scheme other than `http`.
    #[error("proxy {0} is not an HTTP proxy")]
    Proxy(http::Uri),
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

    /// Reads all files and builds a transport. Blocks on files and exec plugins.
    ///
    /// Returns the transport and the server's `host:port`, the label of metrics.
    pub(super) fn connect(&self) -> Result<(Transport, String), ConnectionError> {
        let (mut config, proxy) = match (&self.kubeconfig, &self.master) {
            (None, None) => (Config::incluster_env().map_err(ConnectionError::InCluster)?, None),
            (None, Some(master)) => (Config::new(server_url(master, false)?), None),
            (Some(path), master) => load(path, master.as_deref())?,
        };
        trim_token(&mut config);
        if config.cluster_url.scheme() == Some(&http::uri::Scheme::HTTP) {
            // Plain HTTP needs no roots: without this, an image without a trust store is refused.
            config.root_cert.get_or_insert_default();
        }
        let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
        Ok((transport(&config, proxy)?, host))
    }
}

/// Reads a kubeconfig. `master` takes the place of every server in it; the second value is the
/// kubeconfig's own `proxy-url`.
fn load(path: &Path, master: Option<&str>) -> Result<(Config, Option<String>), ConnectionError> {
    let failed = |source| unusable(path, source);
    let mut kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let context = kubeconfig.current_context.as_deref();
    let name = kubeconfig
        .contexts
        .iter()
        .find(|named| Some(named.name.as_str()) == context)
        .and_then(|named| Some(named.context.as_ref()?.cluster.clone()));
    let cluster = kubeconfig
        .clusters
        .iter_mut()
        .find(|named| Some(&named.name) == name.as_ref())
        .and_then(|named| named.cluster.as_mut());
    let (mut root_cert_file, mut proxy) = (None, None);
    if let Some(cluster) = cluster {
        let secure = cluster.certificate_authority.is_some()
            || cluster.certificate_authority_data.is_some()
            || cluster.insecure_skip_tls_verify.is_some();
        if let Some(master) = master {
            cluster.server = Some(server_url(master, secure)?.to_string());
        }
        if cluster.certificate_authority_data.is_none() {
            root_cert_file = cluster.certificate_authority.clone().map(PathBuf::from);
        }
        proxy = cluster.proxy_url.clone().filter(|url| !url.is_empty());
    }
    let options = KubeConfigOptions::default();
    let mut config =
        futures::FutureExt::now_or_never(Config::from_custom_kubeconfig(kubeconfig, &options))
            .expect("loading a kubeconfig already in memory never waits")
            .map_err(failed)?;
    config.root_cert_file = root_cert_file;
    Ok((config, proxy))
}

fn unusable(path: &Path, source: KubeconfigError) -> ConnectionError {
    let path = path.to_owned();
    match source {
        KubeconfigError::Parse(reason) => {
            let at = reason.location();
            let (line, column) = at.map_or((0, 0), |at| (at.line(), at.column()));
            ConnectionError::Malformed { path, line, column }
        }
        source => ConnectionError::Kubeconfig { path, source },
    }
}

/// `kube` sends what a token file holds, to the last byte. A file that ends in a newline, as `echo`
/// writes it, is taken without; it is read again when the server refuses the token, not by the
/// minute.
fn trim_token(config: &mut Config) {
    let Some(path) = config.auth_info.token_file.clone() else { return };
    let Ok(token) = std::fs::read_to_string(path) else { return };
    if token.trim() != token && config.auth_info.token.is_none() {
        config.auth_info.token = Some(token.trim().to_owned().into());
    }
}

/// `--master` as a URL; without a scheme, `http` unless the kubeconfig speaks of TLS (client-go).
fn server_url(master: &str, secure: bool) -> Result<http::Uri, ConnectionError> {
    let url = match (master.contains("://"), secure) {
        (true, _) => master.to_owned(),
        (false, true) => format!("https://{master}"),
        (false, false) => format!("http://{master}"),
    };
    url.parse().map_err(|source| ConnectionError::Master { master: master.to_owned(), source })
}

/// The proxy for the API server: the kubeconfig's, else `HTTPS_PROXY` and `NO_PROXY` (kubeadm hands
/// its own environment down to kube-proxy).
fn proxy_for(server: &http::Uri, of_kubeconfig: Option<String>) -> Option<Intercept> {
    if server.scheme() != Some(&http::uri::Scheme::HTTPS) {
        return None;
    }
    match of_kubeconfig {
        Some(url) => Matcher::builder().all(url).build().intercept(server),
        None => Matcher::from_env().intercept(server),
    }
}

fn transport(config: &Config, proxy: Option<String>) -> Result<Transport, ConnectionError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(config.connect_timeout);
    // A watch is silent for a minute at a time; a server that vanished without a FIN or RST must be
    // noticed all the same, as HTTP/2 pings do it upstream (30 s + 15 s).
    tcp.set_keepalive(Some(Duration::from_secs(30)));
    tcp.set_keepalive_interval(Some(Duration::from_secs(5)));
    tcp.set_keepalive_retries(Some(3));
    tcp.set_tcp_user_timeout(Some(Duration::from_secs(30)));
    match proxy_for(&config.cluster_url, proxy) {
        None => stack(config, tcp),
        Some(proxy) if proxy.uri().scheme_str() == Some("http") => {
            let tunnel = Tunnel::new(proxy.uri().clone(), tcp);
            match proxy.basic_auth() {
                Some(auth) => stack(config, tunnel.with_auth(auth.clone())),
                None => stack(config, tunnel),
            }
        }
        Some(proxy) => Err(ConnectionError::Proxy(proxy.uri().clone())),
    }
}

/// `kube`'s layers around our connector. `kube`'s own stack would retry and log by itself; here the
/// watch decides about retries.
fn stack<C>(config: &Config, connector: C) -> Result<Transport, ConnectionError>
where
    C: tower::Service<http::Uri> + Clone + Send + Sync + 'static,
    C::Response: hyper::rt::Read
        + hyper::rt::Write
        + hyper_util::client::legacy::connect::Connection
        + Send
        + Unpin,
    C::Future: Send,
    C::Error: Into<BoxError>,
{
    let failed = |source| ConnectionError::Credentials {
        server: config.cluster_url.clone(),
        source: Box::new(source),
    };
    let tls = config.rustls_https_connector_with_connector(connector).map_err(failed)?;
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(tls);
    Ok(BoxCloneSyncService::new(
        ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(config.auth_layer().map_err(failed)?)
            .layer(config.extra_headers_layer().map_err(failed)?)
            .map_err(BoxError::from)
            .service(client),
    ))
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

    #[test]
    fn master_without_scheme_is_http_unless_the_kubeconfig_has_tls() {
        let cases = [
            ("https://10.0.0.1:6443", false, "https://10.0.0.1:6443/"),
            ("10.0.0.1:8080", false, "http://10.0.0.1:8080/"),
            ("10.0.0.1:6443", true, "https://10.0.0.1:6443/"),
        ];
        for (master, secure, want) in cases {
            assert_eq!(server_url(master, secure).unwrap().to_string(), want, "{master}");
        }
        assert!(server_url("http://a b", false).is_err());
    }
}
