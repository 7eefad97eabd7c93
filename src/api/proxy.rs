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
mod tests {
    use super::*;

    /// Entries of `NO_PROXY`, servers that each leaves out, and servers that it does not.
    const EXCEPTIONS: &[(&str, &[&str], &[&str])] = &[
        ("", &[], &["api.corp.test:6443", "192.0.2.7:6443", "[2001:db8::7]:6443"]),
        ("*", &["api.corp.test:6443", "192.0.2.7:6443", "[2001:db8::7]:6443"], &[]),
        (" a.test , * ", &["api.corp.test:6443", "192.0.2.7"], &[]),
        ("*,other.test", &["api.corp.test"], &[]),
        (
            "corp.test",
            &["corp.test", "api.corp.test:6443", "a.b.corp.test"],
            &["mycorp.test", "test"],
        ),
        (".corp.test", &["api.corp.test:6443", "a.b.corp.test"], &["corp.test", "mycorp.test"]),
        ("*.corp.test", &["api.corp.test:6443"], &["corp.test", "mycorp.test"]),
        ("*corp.test", &[], &["api.corp.test", "mycorp.test"]),
        ("CORP.test", &["api.corp.test", "API.Corp.Test"], &["api.other.test"]),
        ("corp.test:6443", &["api.corp.test:6443"], &["api.corp.test", "api.corp.test:443"]),
        ("corp.test:443", &["api.corp.test", "api.corp.test:443"], &["api.corp.test:6443"]),
        (".corp.test:443", &["api.corp.test"], &["corp.test", "api.corp.test:6443"]),
        ("corp.test:", &["api.corp.test:6443"], &["other.test"]),
        (":6443,", &[], &["api.corp.test:6443"]),
        ("192.0.2.7", &["192.0.2.7", "192.0.2.7:6443", "[::ffff:192.0.2.7]"], &["192.0.2.70"]),
        ("192.0.2.7:6443", &["192.0.2.7:6443"], &["192.0.2.7", "192.0.2.7:8443"]),
        ("192.0.2", &[], &["192.0.2.7"]),
        (
            "192.0.2.0/24",
            &["192.0.2.7:6443", "[::ffff:192.0.2.9]"],
            &["192.0.3.7", "[2001:db8::7]"],
        ),
        ("192.0.2.9/24", &["192.0.2.7"], &["192.0.3.7"]),
        ("192.0.2.0/33", &[], &["192.0.2.7"]),
        ("0.0.0.0/0", &["192.0.2.7"], &["[2001:db8::7]", "api.corp.test"]),
        ("2001:db8::/32", &["[2001:db8::7]:6443"], &["[2001:db9::7]", "192.0.2.7"]),
        ("2001:db8::7", &["[2001:db8::7]:6443", "[2001:db8:0::7]"], &["[2001:db8::8]"]),
        ("[2001:db8::7]:6443", &["[2001:db8::7]:6443"], &["[2001:db8::7]", "[2001:db8::7]:8443"]),
        ("[2001:db8::7]", &[], &["[2001:db8::7]"]),
        ("a.test,192.0.2.0/24 , corp.test", &["192.0.2.7", "api.corp.test"], &["192.0.3.7"]),
        ("corp.test other.test", &[], &["api.corp.test", "other.test"]),
    ];

    /// Never through a proxy, whatever the variables say.
    const LOCAL: [&str; 6] = [
        "localhost",
        "localhost:6443",
        "127.0.0.1:6443",
        "127.9.9.9",
        "[::1]:6443",
        "[::ffff:127.0.0.1]:6443",
    ];

    /// Variables, and those that count for `https` and `http` servers.
    type Case =
        (&'static [(&'static str, &'static str)], Option<&'static str>, Option<&'static str>);
    const VARIABLES: &[Case] = &[
        (&[], None, None),
        (&[("HTTPS_PROXY", "http://a.test:1")], Some("HTTPS_PROXY"), None),
        (&[("https_proxy", "http://a.test:1")], Some("https_proxy"), None),
        (&[("HTTP_PROXY", "http://a.test:1")], None, Some("HTTP_PROXY")),
        (&[("http_proxy", "http://a.test:1")], None, Some("http_proxy")),
        (
            &[("HTTPS_PROXY", "http://a.test:1"), ("https_proxy", "http://b.test:2")],
            Some("HTTPS_PROXY"),
            None,
        ),
        (&[("HTTPS_PROXY", ""), ("https_proxy", "http://b.test:2")], Some("https_proxy"), None),
        (
            &[("HTTP_PROXY", "http://a.test:1"), ("HTTPS_PROXY", "socks5://b.test:2")],
            Some("HTTPS_PROXY"),
            Some("HTTP_PROXY"),
        ),
        (&[("ALL_PROXY", "socks5://a.test:1"), ("all_proxy", "http://b.test:2")], None, None),
    ];

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::read(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn named(route: Result<Route, NoProxyUrl>) -> Option<&'static str> {
        match route.expect("a URL") {
            Route::Direct => None,
            Route::Through(proxy) => Some(proxy.named_by),
            Route::RefusedInCgi => Some("REQUEST_METHOD"),
        }
    }

    // Variables by exceptions by servers by schemes: HTTPS_PROXY led to a server on this machine, `*` had no
    // effect, ALL_PROXY ended the process.
    #[test]
    fn every_server_is_reached_as_go_programs_reach_it() {
        let mut cases = 0;
        for (variables, https, http) in VARIABLES {
            for (exceptions, left_out, not) in EXCEPTIONS {
                for name in ["NO_PROXY", "no_proxy"] {
                    let all = [*variables, &[(name, *exceptions)]].concat();
                    let environment = environment(&all);
                    let servers = left_out.iter().chain(&LOCAL).map(|server| (server, true));
                    for (server, direct) in servers.chain(not.iter().map(|server| (server, false)))
                    {
                        for (scheme, want) in [("https", https), ("http", http)] {
                            // The port of an exception is told from the scheme's own.
                            if scheme == "http" && exceptions.contains(":443") {
                                continue;
                            }
                            let uri: Uri = format!("{scheme}://{server}").parse().unwrap();
                            let got = named(environment.route(&uri));
                            let want = want.filter(|_| !direct);
                            assert_eq!(got, want, "{all:?}: {uri}");
                            cases += 1;
                        }
                    }
                }
            }
        }
        assert!(cases > 4000, "{cases}");
    }

    #[test]
    fn upper_case_exceptions_go_before_lower_case() {
        let uri = "https://192.0.2.7".parse().unwrap();
        let all = [("HTTPS_PROXY", "a.test:1"), ("NO_PROXY", "x.test"), ("no_proxy", "*")];
        assert_eq!(named(environment(&all).route(&uri)), Some("HTTPS_PROXY"));
        let all = [("HTTPS_PROXY", "a.test:1"), ("NO_PROXY", ""), ("no_proxy", "*")];
        assert_eq!(named(environment(&all).route(&uri)), None);
    }

    #[test]
    fn a_cgi_program_does_not_trust_http_proxy() {
        let environment = environment(&[
            ("REQUEST_METHOD", "GET"),
            ("HTTP_PROXY", "a.test:1"),
            ("HTTPS_PROXY", "a.test:1"),
        ]);
        let route = |uri: &str| environment.route(&uri.parse().unwrap());
        assert_eq!(route("http://192.0.2.7"), Ok(Route::RefusedInCgi));
        assert_eq!(named(route("https://192.0.2.7")), Some("HTTPS_PROXY"));
    }

    #[test]
    fn values_are_read_as_go_reads_them() {
        use Protocol::{Http, Https, Socks};
        let user = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        let cases = [
            ("http://a.test:3128", Http, "http://a.test:3128/", None),
            ("http://a.test", Http, "http://a.test:80/", None),
            ("http://a.test/ignored?x#y", Http, "http://a.test:80/", None),
            ("HTTP://a.test:1", Http, "http://a.test:1/", None),
            ("a.test:3128", Http, "http://a.test:3128/", None),
            ("a.test", Http, "http://a.test:80/", None),
            ("192.0.2.9:3128", Http, "http://192.0.2.9:3128/", None),
            ("[2001:db8::1]:3128", Http, "http://[2001:db8::1]:3128/", None),
            ("http://[2001:db8::1]", Http, "http://[2001:db8::1]:80/", None),
            ("https://a.test", Https, "https://a.test:443/", None),
            ("https://a.test:8443", Https, "https://a.test:8443/", None),
            ("socks5://a.test", Socks, "http://a.test:1080/", None),
            ("socks5h://a.test:9", Socks, "http://a.test:9/", None),
            ("ftp://a.test:21", Http, "http://a.test:21/", None),
            ("http://me:s%40f@a.test:1", Http, "http://a.test:1/", user("me", "s@f")),
            ("me:pw@a.test:1", Http, "http://a.test:1/", user("me", "pw")),
            ("socks5://me@a.test", Socks, "http://a.test:1080/", user("me", "")),
        ];
        for (value, protocol, uri, user) in cases {
            let proxy = Proxy::parse(value, "HTTPS_PROXY").unwrap_or_else(|_| panic!("{value}"));
            let got = (proxy.protocol, proxy.uri.to_string(), proxy.user);
            assert_eq!(got, (protocol, uri.to_owned(), user), "{value}");
        }
        for value in [" ", "http://[::1", "http://a b", "http://a.test:port", "http:a"] {
            assert!(Proxy::parse(value, "HTTPS_PROXY").is_err(), "{value}");
        }
        let proxy = Proxy::parse("http://me:pw@a.test", "HTTPS_PROXY").unwrap();
        assert_eq!(proxy.authorization().unwrap(), "Basic bWU6cHc=");
    }
}
