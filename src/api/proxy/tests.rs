use super::*;

/// Entries of `NO_PROXY`, servers that each leaves out, and servers that it does not.
const EXCEPTIONS: &[(&str, &[&str], &[&str])] = &[
    ("", &[], &["api.corp.test:6443", "192.0.2.7:6443", "[2001:db8::7]:6443"]),
    ("*", &["api.corp.test:6443", "192.0.2.7:6443", "[2001:db8::7]:6443"], &[]),
    (" a.test , * ", &["api.corp.test:6443", "192.0.2.7"], &[]),
    ("*,other.test", &["api.corp.test"], &[]),
    ("corp.test", &["corp.test", "api.corp.test:6443", "a.b.corp.test"], &["mycorp.test", "test"]),
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
    ("192.0.2.0/24", &["192.0.2.7:6443", "[::ffff:192.0.2.9]"], &["192.0.3.7", "[2001:db8::7]"]),
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
type Case = (&'static [(&'static str, &'static str)], Option<&'static str>, Option<&'static str>);
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
                for (server, direct) in servers.chain(not.iter().map(|server| (server, false))) {
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
