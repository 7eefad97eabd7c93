//! Which proxy leads to the API server: Go's rules, for which the variables were written.
//!
//! Place in the flow: [`super::connection`] asks before it dials. Pure: variables come as a function.
//! Source: the documented behaviour of golang.org/x/net/http/httpproxy and of net/http's transport.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};
use ipnet::IpNet;
use percent_encoding::percent_decode_str;

/// How one speaks to a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP; also what Go makes of schemes that it does not know.
    Http,
    /// HTTP over TLS.
    Https,
    /// SOCKS5; names are resolved by the proxy.
    Socks,
}

/// A proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proxy {
    pub(super) protocol: Protocol,
    /// With a port.
    pub(super) uri: Uri,
    pub(super) user: Option<(String, String)>,
    /// Where it was named.
    pub(super) named_by: &'static str,
}

/// Whether and through what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Direct,
    Through(Proxy),
    /// A client of a CGI server could have set `HTTP_PROXY` by a header.
    RefusedInCgi,
}

/// A value that names no proxy. What it is is not said: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoProxyUrl {
    pub(super) named_by: &'static str,
}

/// The variables that count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Environment {
    https: Option<(&'static str, String)>,
    http: Option<(&'static str, String)>,
    exceptions: Option<(&'static str, String)>,
    cgi: bool,
}

impl Environment {
    /// Upper case goes before lower case; an empty value is none. `ALL_PROXY` is not Go's.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Environment {
        let set = |name: &'static str| {
            let value = variable(name).filter(|value| !value.is_empty())?;
            Some((name, value))
        };
        Environment {
            https: set("HTTPS_PROXY").or_else(|| set("https_proxy")),
            http: set("HTTP_PROXY").or_else(|| set("http_proxy")),
            exceptions: set("NO_PROXY").or_else(|| set("no_proxy")),
            cgi: set("REQUEST_METHOD").is_some(),
        }
    }

    /// The way to a server.
    ///
    /// Errors: the variable's value is no URL. Go goes directly then.
    pub(super) fn route(&self, server: &Uri) -> Result<Route, NoProxyUrl> {
        let is_https = server.scheme() == Some(&Scheme::HTTPS);
        let named = if is_https { &self.https } else { &self.http };
        let Some((named_by, value)) = named else { return Ok(Route::Direct) };
        let proxy = Proxy::parse(value, named_by)?;
        if self.cgi && !is_https {
            return Ok(Route::RefusedInCgi);
        }
        let exceptions = self.exceptions.as_ref().map_or("", |(_, value)| value);
        let port = server.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        Ok(match is_excepted(server.host().unwrap_or_default(), port, exceptions) {
            true => Route::Direct,
            false => Route::Through(proxy),
        })
    }
}

impl Proxy {
    /// Reads a proxy's URL; what has no scheme and host is taken for `host:port` of an HTTP proxy.
    pub(super) fn parse(value: &str, named_by: &'static str) -> Result<Proxy, NoProxyUrl> {
        let failed = NoProxyUrl { named_by };
        let (scheme, rest) = match value.split_once("://") {
            Some((scheme, rest)) if is_scheme(scheme) && !authority(rest).is_empty() => {
                (scheme.to_ascii_lowercase(), rest)
            }
            _ => ("http".to_owned(), value),
        };
        let (user, host) = match authority(rest).rsplit_once('@') {
            Some((user, host)) => (Some(credentials(user)), host),
            None => (None, authority(rest)),
        };
        let (protocol, scheme, port) = match scheme.as_str() {
            "https" => (Protocol::Https, Scheme::HTTPS, 443),
            "socks5" | "socks5h" => (Protocol::Socks, Scheme::HTTP, 1080),
            _ => (Protocol::Http, Scheme::HTTP, 80),
        };
        let host: Authority = host.parse().map_err(|_| failed)?;
        if host.host().is_empty() || (host.port().is_none() && has_port(&host)) {
            return Err(failed);
        }
        let host = match host.port() {
            Some(_) => host,
            None => format!("{}:{port}", host.host()).parse().map_err(|_| failed)?,
        };
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(scheme);
        parts.authority = Some(host);
        parts.path_and_query = Some(PathAndQuery::from_static("/"));
        let uri = Uri::from_parts(parts).map_err(|_| failed)?;
        Ok(Proxy { protocol, uri, user, named_by })
    }

    /// Reads `proxy-url` of a kubeconfig, where client-go takes fewer schemes, and no URL without one.
    pub(super) fn of_kubeconfig(url: &str) -> Option<Proxy> {
        let scheme = url.split_once("://")?.0.to_ascii_lowercase();
        let proxy = Proxy::parse(url, "proxy-url").ok()?;
        matches!(&*scheme, "http" | "https" | "socks5").then_some(proxy)
    }

    /// `Proxy-Authorization`.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        let (user, password) = self.user.as_ref()?;
        let text = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

/// What stands before the path.
fn authority(rest: &str) -> &str {
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

/// A colon behind the host without a number that can be a port.
fn has_port(host: &Authority) -> bool {
    host.as_str().len() > host.host().len() + 1
}

fn credentials(text: &str) -> (String, String) {
    let decoded = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    (decoded(user), decoded(password))
}

/// Whether `NO_PROXY` or Go itself leaves this server out.
fn is_excepted(host: &str, port: u16, exceptions: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
        return true;
    }
    let host = host.to_ascii_lowercase();
    exceptions.split(',').any(|entry| {
        let entry = entry.trim().to_lowercase();
        entry == "*" || excepts(&entry, &host, address, port)
    })
}

fn excepts(entry: &str, host: &str, address: Option<IpAddr>, port: u16) -> bool {
    if let Ok(net) = entry.parse::<IpNet>() {
        return address.is_some_and(|address| net.contains(&address));
    }
    let (name, of_port) = split_port(entry);
    if name.is_empty() || !(of_port.is_empty() || of_port == port.to_string()) {
        return false;
    }
    if let Ok(wanted) = name.parse::<IpAddr>() {
        return address == Some(wanted.to_canonical());
    }
    if address.is_some() {
        return false;
    }
    let name = name.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(name);
    match name.strip_prefix('.') {
        Some(_) => host.ends_with(name),
        None => host == name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')),
    }
}

/// Name and port of an entry: `name:port`, `[address]:port`, or all of it and no port.
fn split_port(entry: &str) -> (&str, &str) {
    if let Some((name, port)) = entry.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
        return (name, port);
    }
    match entry.split_once(':') {
        Some((name, port)) if !port.contains(':') => (name, port),
        _ => (entry, ""),
    }
}

#[cfg(test)]
mod tests;
