//! A throw-away certificate authority, and certificates that a test brings along.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::sign::any_supported_type;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// What a server shows, and what its clients are to trust; all in PEM.
#[derive(Debug, Clone)]
pub struct Chain {
    /// For `ca.crt`.
    pub trusted: String,
    /// The server's certificate and those behind it.
    pub shown: String,
    pub key: String,
}

/// A server's side of TLS.
#[derive(Clone)]
pub(super) struct Tls {
    pub(super) ca_pem: String,
    pub(super) acceptor: TlsAcceptor,
    config: ServerConfig,
    shown: Arc<SingleCertAndKey>,
}

impl Tls {
    /// A new CA, and a certificate for this address.
    pub(super) fn generate(address: IpAddr) -> Tls {
        Tls::new(Self::try_generate(address).expect("certificates for an address can be made"))
    }

    /// A server with these certificates.
    ///
    /// # Panics
    /// If they are of no use to a server.
    pub(super) fn new(chain: Chain) -> Tls {
        let shown: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(chain.shown.as_bytes()).collect();
        let key = PrivateKeyDer::from_pem_slice(chain.key.as_bytes()).expect("a key");
        let key = any_supported_type(&key).expect("a key that ring knows");
        // Nobody looks here whether a server should show such certificates.
        let shown = CertifiedKey::new(shown.expect("certificates"), key);
        let shown = Arc::new(SingleCertAndKey::from(shown));
        let config =
            ServerConfig::builder().with_no_client_auth().with_cert_resolver(shown.clone());
        Tls::with(chain.trusted, config, shown, &[b"h2", b"http/1.1"])
    }

    fn with(
        ca_pem: String,
        mut config: ServerConfig,
        shown: Arc<SingleCertAndKey>,
        protocols: &[&[u8]],
    ) -> Tls {
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config.clone()));
        Tls { ca_pem, acceptor, config, shown }
    }

    /// The same without HTTP/2.
    pub(super) fn http1_only(self) -> Tls {
        Tls::with(self.ca_pem, self.config, self.shown, &[b"http/1.1"])
    }

    /// The same for clients with a certificate of a new CA only; also one of those, in PEM with its
    /// key.
    pub(super) fn for_clients(self) -> (Tls, String, String) {
        self.try_for_clients().expect("certificates for a client can be made")
    }

    fn try_for_clients(self) -> Result<(Tls, String, String), Box<dyn std::error::Error>> {
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let mut roots = RootCertStore::empty();
        roots.add(ca.self_signed(&ca_key)?.der().clone())?;
        let key = KeyPair::generate()?;
        let client = CertificateParams::default().signed_by(&key, &Issuer::new(ca, ca_key))?;
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build()?;
        let config = ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.shown.clone());
        let tls = Tls::with(self.ca_pem, config, self.shown, &[b"h2", b"http/1.1"]);
        Ok((tls, client.pem(), key.serialize_pem()))
    }

    fn try_generate(address: IpAddr) -> Result<Chain, rcgen::Error> {
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, "scripted API server CA");
        let trusted = ca.self_signed(&ca_key)?.pem();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(vec![address.to_string()])?.signed_by(&key, &issuer)?;
        Ok(Chain { trusted, shown: leaf.pem(), key: key.serialize_pem() })
    }
}

/// Takes connections with TLS and passes on what comes out of them, until the process ends.
pub(super) fn front(
    address: SocketAddr,
    acceptor: TlsAcceptor,
    behind: SocketAddr,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("tls-front".to_owned()).spawn(move || {
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listening socket");
            while let Ok((client, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // Whoever is at fault, the test's next wait tells.
                    let mut client = acceptor.accept(client).await?;
                    let mut server = tokio::net::TcpStream::connect(behind).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
    })?;
    Ok(address)
}
