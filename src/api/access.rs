//! Where the API server is, whom to trust and who we are: kubeconfig, `--master`, or the pod's own
//! service account.
//!
//! Place in the flow: [`super::connection`] reads this at start and whenever credentials may have
//! changed. `kube` knows the kubeconfig's format; certificates, keys and tokens are read here.

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Uri};
use kube::Config;
use kube::config::KubeconfigError;
use kube::config::{AuthInfo, Cluster, InClusterError, KubeConfigOptions, Kubeconfig};
use rustls::pki_types::InvalidDnsNameError;
use secrecy::ExposeSecret;

use super::proxy::Proxy;

/// Why no connection could be set up.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("no kubeconfig and no master given, and the in-cluster configuration is unusable")]
    InCluster(#[source] kube::config::InClusterError),
    #[error("cannot load kubeconfig {}", path.display())]
    Kubeconfig {
        path: PathBuf,
        #[source]
        source: KubeconfigError,
    },
    /// The kubeconfig has not the shape of one. What stands there is not quoted: it may be a secret.
    #[error("cannot load kubeconfig {}: malformed at line {line}, column {column}", path.display())]
    Malformed {
        path: PathBuf,
        /// Counted from 1; 0 if the place is not known.
        line: u64,
        column: u64,
    },
    #[error("master {master:?} is not a URL")]
    Master {
        master: String,
        #[source]
        source: http::uri::InvalidUri,
    },
    #[error("cannot use the credentials for {server}")]
    Credentials {
        server: http::Uri,
        /// The certificate, key, token or plugin at fault.
        #[source]
        source: Box<kube::Error>,
    },
    /// A file that a kubeconfig names, or the service account's token, cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("kubeconfig {} has data that is not base64", path.display())]
    NotBase64 {
        path: PathBuf,
        /// Where it ends to be.
        #[source]
        source: base64::DecodeError,
    },
    #[error("no certificate can be read from {0}")]
    NoAnchor(String),
    /// The client's certificate and key do not go with each other, or are of no known sort.
    #[error("cannot use the credentials for {server}: client certificate and key")]
    Identity {
        server: http::Uri,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("tls-server-name {name:?} is not a name")]
    ServerName {
        name: String,
        #[source]
        source: InvalidDnsNameError,
    },
    /// A field that client-go refuses too. Its value is not quoted: it may hold a password.
    #[error("kubeconfig {}: {field} {reason}", path.display())]
    Field {
        path: PathBuf,
        /// As the kubeconfig has it.
        field: &'static str,
        /// The rest of the sentence.
        reason: &'static str,
    },
    #[error("exec plugin {command:?} of the kubeconfig: {reason}")]
    Plugin {
        /// What was run, without arguments and environment: they may be secrets.
        command: String,
        /// Why there are none; nothing of the plugin's output.
        reason: String,
    },
}

/// Where a pod finds its service account.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

/// Everything that a connection needs.
pub(super) struct Access {
    /// Server, exec plugin, inline token and the like; no certificates and no files.
    pub(super) config: Config,
    pub(super) trust: Trust,
    /// Certificates and key of the client, in PEM.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The kubeconfig's own proxy.
    pub(super) proxy: Option<Proxy>,
    pub(super) files: Files,
}

/// Which servers are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trust {
    /// `insecure-skip-tls-verify`.
    Anyone,
    /// Those of a bundle in PEM, which has this name.
    Bundle(String, Vec<u8>),
    /// What the system trusts.
    System,
}

/// The files that may be replaced while we run.
#[derive(Debug, Clone, Default)]
pub(super) struct Files {
    /// The token's.
    token: Option<PathBuf>,
    /// Certificates and keys, and what was read from them.
    others: Vec<(PathBuf, Vec<u8>)>,
}

impl Files {
    pub(super) fn is_empty(&self) -> bool {
        self.token.is_none() && self.others.is_empty()
    }

    /// Whether a certificate or key is another one. A file that is gone is not: who rotates may
    /// remove it before.
    pub(super) fn have_changed(&self) -> bool {
        let differs = |(path, known): &(PathBuf, Vec<u8>)| {
            fs::read(path).is_ok_and(|now| !now.is_empty() && now != *known)
        };
        self.others.iter().any(differs)
    }

    /// The header for the token as it is in its file; `None` where there is nothing to read.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        bearer(&read_token(self.token.as_deref()?).ok()?)
    }

    fn read(&mut self, path: &Path) -> Result<Vec<u8>, ConnectionError> {
        let bytes = fs::read(path)
            .map_err(|source| ConnectionError::File { path: path.to_owned(), source })?;
        self.others.push((path.to_owned(), bytes.clone()));
        Ok(bytes)
    }
}

/// A token is a word: whatever blank surrounds it is the writer's.
fn read_token(path: &Path) -> io::Result<String> {
    let token = fs::read_to_string(path)?.trim().to_owned();
    match token.is_empty() {
        true => Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty")),
        false => Ok(token),
    }
}

fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl Access {
    /// `--master` alone: no credentials.
    pub(super) fn to_master(master: &str) -> Result<Access, ConnectionError> {
        Ok(Access {
            config: Config::new(server_url(master, false)?),
            trust: Trust::System,
            identity: None,
            proxy: None,
            files: Files::default(),
        })
    }

    /// The pod's service account.
    pub(super) fn of_pod() -> Result<Access, ConnectionError> {
        let config = Config::new(server_of_pod().map_err(ConnectionError::InCluster)?);
        let mut files = Files { token: Some(TOKEN.into()), ..Files::default() };
        check_token(Path::new(TOKEN))?;
        // As upstream: without it the system's roots have to do.
        let trust = match files.read(Path::new(CA)) {
            Ok(bundle) => Trust::Bundle(CA.to_owned(), bundle),
            Err(missing) => {
                tracing::error!(error = &missing as &dyn std::error::Error, "no CA of the cluster");
                Trust::System
            }
        };
        Ok(Access { config, trust, identity: None, proxy: None, files })
    }

    /// A kubeconfig; `master` takes the place of its server.
    pub(super) fn by_kubeconfig(
        path: &Path,
        master: Option<&str>,
    ) -> Result<Access, ConnectionError> {
        Access::of_kubeconfig(path, read_kubeconfig(path)?, master)
    }

    /// The same of one that has been read; `path` is for messages.
    pub(super) fn of_kubeconfig(
        path: &Path,
        mut kubeconfig: Kubeconfig,
        master: Option<&str>,
    ) -> Result<Access, ConnectionError> {
        let mut files = Files::default();
        let context = kubeconfig
            .contexts
            .iter()
            .find(|named| Some(&named.name) == kubeconfig.current_context.as_ref());
        let context = context.and_then(|named| named.context.clone()).unwrap_or_default();
        let cluster = kubeconfig.clusters.iter_mut().find(|named| named.name == context.cluster);
        let mut cluster = cluster.and_then(|named| named.cluster.as_mut());
        let user =
            kubeconfig.auth_infos.iter_mut().find(|n| Some(&n.name) == context.user.as_ref());
        let user = user.and_then(|named| named.auth_info.as_mut());
        let mut trust = Trust::System;
        let mut proxy_url = None;
        if let Some(cluster) = &mut cluster {
            if let Some(master) = master {
                let secure = speaks_of_tls(cluster);
                cluster.server = Some(server_url(master, secure)?.to_string());
                // It was the name of the other server.
                cluster.tls_server_name = None;
            }
            trust = take_trust(path, cluster, &mut files)?;
            proxy_url = cluster.proxy_url.take().filter(|url| !url.is_empty());
            // `kube` would read the environment's, by other rules than ours.
            cluster.proxy_url = Some("http://unused".to_owned());
        }
        let refuse =
            |field, reason| ConnectionError::Field { path: path.to_owned(), field, reason };
        let proxy = proxy_url.as_deref().map(|url| {
            let reason = "is not a URL of scheme http, https or socks5";
            Proxy::of_kubeconfig(url).ok_or_else(|| refuse("proxy-url", reason))
        });
        let proxy = proxy.transpose()?;
        let identity = match user {
            Some(user) => take_identity(path, user, &mut files)?,
            None => None,
        };
        let mut config = futures::FutureExt::now_or_never(Config::from_custom_kubeconfig(
            kubeconfig,
            &KubeConfigOptions::default(),
        ))
        .expect("loading a kubeconfig already in memory never waits")
        .map_err(|source| unusable(path, source))?;
        tell_plugin(&mut config, &trust, proxy_url);
        Ok(Access { config, trust, identity, proxy, files })
    }
}

fn speaks_of_tls(cluster: &Cluster) -> bool {
    cluster.certificate_authority.is_some()
        || cluster.certificate_authority_data.is_some()
        || cluster.insecure_skip_tls_verify.is_some()
}

/// An exec plugin that wants to know the cluster gets what was taken out of it.
fn tell_plugin(config: &mut Config, trust: &Trust, proxy_url: Option<String>) {
    let plugin = config.auth_info.exec.as_mut();
    if let Some(cluster) = plugin.and_then(|plugin| plugin.cluster.as_mut()) {
        cluster.proxy_url = proxy_url;
        if let Trust::Bundle(_, bundle) = trust {
            cluster.certificate_authority_data = Some(bundle.clone());
        }
    }
}

/// A file that has a name: `kube` puts the kubeconfig's directory in front of empty ones too.
fn named(file: Option<String>) -> Option<String> {
    file.filter(|file| !file.is_empty() && !file.ends_with('/'))
}

/// Takes the CA out of a kubeconfig: inline before a file.
fn take_trust(
    path: &Path,
    cluster: &mut Cluster,
    files: &mut Files,
) -> Result<Trust, ConnectionError> {
    let inline = cluster.certificate_authority_data.take().filter(|data| !data.is_empty());
    let file = named(cluster.certificate_authority.take());
    let field = match (&inline, &file) {
        (Some(_), _) => Some("certificate-authority-data"),
        (None, Some(_)) => Some("certificate-authority"),
        (None, None) => None,
    };
    if cluster.insecure_skip_tls_verify == Some(true) {
        let is_https = cluster.server.as_ref().is_some_and(|url| url.starts_with("https:"));
        // Without TLS client-go does not look at it.
        return field.filter(|_| is_https).map_or(Ok(Trust::Anyone), |field| {
            let reason = "stands beside insecure-skip-tls-verify: specifying a root certificates \
                          file with the insecure flag is not allowed";
            Err(ConnectionError::Field { path: path.to_owned(), field, reason })
        });
    }
    Ok(match (inline, file) {
        (Some(data), _) => {
            let name = format!("certificate-authority-data of {}", path.display());
            Trust::Bundle(name, decode(path, &data)?)
        }
        (None, Some(file)) => Trust::Bundle(file.clone(), files.read(Path::new(&file))?),
        (None, None) => Trust::System,
    })
}

/// Takes certificates, key and token file out of a user.
fn take_identity(
    path: &Path,
    user: &mut AuthInfo,
    files: &mut Files,
) -> Result<Option<(Vec<u8>, Vec<u8>)>, ConnectionError> {
    if let Some(file) = named(user.token_file.take()) {
        let file = PathBuf::from(file);
        // As in client-go, a token of the kubeconfig stands in for a file that cannot be read.
        if user.token.is_none() {
            check_token(&file)?;
        }
        files.token = Some(file);
    }
    let key = user.client_key_data.take().map(|key| key.expose_secret().to_owned());
    let mut take = |data: Option<String>, file: Option<String>| {
        let file = named(file);
        match (data.filter(|data| !data.is_empty()), file) {
            (Some(data), _) => decode(path, &data).map(Some),
            (None, Some(file)) => files.read(Path::new(&file)).map(Some),
            (None, None) => Ok(None),
        }
    };
    let certificates = take(user.client_certificate_data.take(), user.client_certificate.take())?;
    let key = take(key, user.client_key.take())?;
    let refuse = |field, reason| ConnectionError::Field { path: path.to_owned(), field, reason };
    if let Some(exec) = &user.exec {
        let is_missing = |value: &Option<String>| value.as_ref().is_none_or(String::is_empty);
        let fields = [("exec.command", &exec.command), ("exec.apiVersion", &exec.api_version)];
        if let Some((field, _)) = fields.into_iter().find(|(_, value)| is_missing(value)) {
            return Err(refuse(field, "is missing"));
        }
    }
    match (certificates, key) {
        (Some(_), None) => Err(refuse("client-key", "is missing beside client-certificate")),
        (None, Some(_)) => {
            // client-go does not look at it.
            tracing::warn!(kubeconfig = %path.display(), "client-key has no effect without client-certificate");
            Ok(None)
        }
        (certificates, key) => Ok(certificates.zip(key)),
    }
}

fn check_token(path: &Path) -> Result<(), ConnectionError> {
    match read_token(path) {
        Ok(_) => Ok(()),
        Err(source) => Err(ConnectionError::File { path: path.to_owned(), source }),
    }
}

/// Base64 as YAML may fold it.
fn decode(path: &Path, data: &str) -> Result<Vec<u8>, ConnectionError> {
    let data: String = data.split_ascii_whitespace().collect();
    let failed = |source| ConnectionError::NotBase64 { path: path.to_owned(), source };
    STANDARD.decode(data).map_err(failed)
}

/// `--master` as a URL; without a scheme, `http` unless the kubeconfig speaks of TLS (client-go).
fn server_url(master: &str, secure: bool) -> Result<Uri, ConnectionError> {
    let url = match (master.contains("://"), secure) {
        (true, _) => master.to_owned(),
        (false, true) => format!("https://{master}"),
        (false, false) => format!("http://{master}"),
    };
    url.parse().map_err(|source| ConnectionError::Master { master: master.to_owned(), source })
}

/// The API server of a pod's environment.
fn server_of_pod() -> Result<Uri, InClusterError> {
    let variable = |name| std::env::var(name).map_err(InClusterError::ReadEnvironmentVariable);
    let host = variable("KUBERNETES_SERVICE_HOST")?;
    let port: u16 =
        variable("KUBERNETES_SERVICE_PORT")?.parse().map_err(InClusterError::ParseClusterPort)?;
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    format!("https://{host}:{port}").parse().map_err(InClusterError::ParseClusterUrl)
}

/// A file in the kubeconfig's format.
pub(super) fn read_kubeconfig(path: &Path) -> Result<Kubeconfig, ConnectionError> {
    Kubeconfig::read_from(path).map_err(|source| unusable(path, source))
}

pub(super) fn unusable(path: &Path, source: KubeconfigError) -> ConnectionError {
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

#[cfg(test)]
mod tests {
    use super::*;

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
