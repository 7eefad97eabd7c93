//! The server's thread: connections, requests, lists and Events.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::script::{Answer, Ask, Break, Recorded};
use super::store::Selector;
use super::stream::{Body, Stream, status};
use super::{Shared, encode, people};
use crate::model::Kind;
use crate::wire::Encoding;

/// An answer, or the wish to drop the connection.
type Reply = Result<Response<Body>, io::Error>;

#[derive(Clone)]
pub(super) struct Server {
    pub(super) shared: Arc<Shared>,
}

/// A request, sorted.
struct Query {
    kind: Option<Kind>,
    ask: Ask,
    parameters: BTreeMap<String, String>,
    encoding: Encoding,
}

fn kind_of(path: &str) -> Option<Kind> {
    match path {
        "/api/v1/nodes" => Some(Kind::Node),
        "/api/v1/services" => Some(Kind::Service),
        "/apis/discovery.k8s.io/v1/endpointslices" => Some(Kind::EndpointSlice),
        "/apis/networking.k8s.io/v1/servicecidrs" => Some(Kind::ServiceCidr),
        _ => None,
    }
}

fn ask_of(request: &Request<Incoming>, parameters: &BTreeMap<String, String>) -> Ask {
    let path = request.uri().path();
    let has = |name: &str| parameters.get(name).is_some_and(|value| value == "true");
    match *request.method() {
        Method::POST | Method::PATCH if path.starts_with("/apis/events.k8s.io/v1/namespaces/") => {
            Ask::Event
        }
        Method::GET if kind_of(path).is_none() => Ask::Other,
        Method::GET if has("watch") && has("sendInitialEvents") => Ask::StreamingList,
        Method::GET if has("watch") => Ask::Watch,
        Method::GET if parameters.contains_key("continue") => Ask::ListPage,
        Method::GET => Ask::List,
        _ => Ask::Other,
    }
}

pub(super) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn media_type(encoding: Encoding, stream: bool) -> &'static str {
    match (encoding, stream) {
        (Encoding::Json, _) => "application/json",
        (Encoding::Protobuf, false) => "application/vnd.kubernetes.protobuf",
        (Encoding::Protobuf, true) => "application/vnd.kubernetes.protobuf;stream=watch",
    }
}

fn answer(code: u16, content_type: &str, body: Body) -> Response<Body> {
    Response::builder()
        .status(code)
        .header(CONTENT_TYPE, content_type)
        .body(body)
        .expect("scripted status codes are valid")
}

fn refuse(encoding: Encoding, code: u16, reason: &str, message: &str) -> Response<Body> {
    let body = encode::status(encoding, &status(code, reason, message));
    answer(code, media_type(encoding, false), full(body))
}

fn forbidden(query: &Query) -> Response<Body> {
    refuse(query.encoding, 403, "Forbidden", "not allowed to a kube-proxy")
}

/// The selectors of a request; `Err` names what is not supported.
fn selector(query: &Query) -> Result<Selector, String> {
    let parameter = |name: &str| query.parameters.get(name).map(String::as_str);
    Selector::parse(parameter("labelSelector"), parameter("fieldSelector"))
}

impl Server {
    /// Serves until it is told to stop; all connections end with it.
    pub(super) fn run(self, listener: std::net::TcpListener, stop: watch::Receiver<bool>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be built");
        runtime.block_on(self.accept(listener, stop));
    }

    async fn accept(self, listener: std::net::TcpListener, mut stop: watch::Receiver<bool>) {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listening socket");
        loop {
            let connection = tokio::select! {
                connection = listener.accept() => connection,
                _ = stop.wait_for(|&stop| stop) => return,
            };
            if let Ok((connection, _)) = connection {
                // As Go's servers do: a small event never waits for the client's acknowledgement.
                connection.set_nodelay(true).expect("an option every TCP socket has");
                self.shared.lock().connections += 1;
                // As Go has it on every connection: without it small events wait 40 ms for each other.
                let _ = connection.set_nodelay(true);
                let server = self.clone();
                tokio::spawn(async move {
                    let tls = server.shared.lock().tls.as_ref().map(|tls| tls.acceptor.clone());
                    match tls {
                        None => server.connection(connection).await,
                        // A client that does not trust us ends the handshake: not our error.
                        Some(tls) => {
                            if let Ok(connection) = tls.accept(connection).await {
                                server.connection(connection).await;
                            }
                        }
                    }
                });
            }
        }
    }

    async fn connection(self, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let shared = Arc::clone(&self.shared);
        let service = service_fn(move |request| self.clone().request(request));
        let server = auto::Builder::new(TokioExecutor::new());
        let serving = server.serve_connection_with_upgrades(TokioIo::new(io), service);
        let mut serving = std::pin::pin!(serving);
        let mut breaks = shared.breaks.subscribe();
        loop {
            // Broken connections are part of the script.
            tokio::select! {
                _ = serving.as_mut() => return,
                broken = breaks.recv() => match broken {
                    Ok(Break::Goodbye) => serving.as_mut().graceful_shutdown(),
                    _ => return,
                },
            }
        }
    }

    async fn request(self, request: Request<Incoming>) -> Reply {
        let pairs = form_urlencoded::parse(request.uri().query().unwrap_or("").as_bytes());
        let parameters: BTreeMap<String, String> = pairs.into_owned().collect();
        let kind = kind_of(request.uri().path());
        let ask = ask_of(&request, &parameters);
        let index = self.record(&request, kind, ask, &parameters);
        let encoding = self.encoding(&request);
        let query = Query { kind, ask, parameters, encoding };
        let reply = self.reply(request, query).await;
        self.shared.lock().requests[index].answered =
            reply.as_ref().ok().map(|answer| answer.status().as_u16());
        reply
    }

    fn record(
        &self,
        request: &Request<Incoming>,
        kind: Option<Kind>,
        ask: Ask,
        query: &BTreeMap<String, String>,
    ) -> usize {
        let mut state = self.shared.lock();
        state.requests.push(Recorded {
            at: Instant::now(),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            query: query.clone(),
            headers: request.headers().clone(),
            kind,
            ask,
            version: request.version(),
            answered: None,
        });
        state.requests.len() - 1
    }

    fn encoding(&self, request: &Request<Incoming>) -> Encoding {
        let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
        let wanted = accept.is_some_and(|accept| accept.contains("vnd.kubernetes.protobuf"));
        match wanted && !self.shared.lock().json_only {
            true => Encoding::Protobuf,
            false => Encoding::Json,
        }
    }

    async fn reply(&self, request: Request<Incoming>, query: Query) -> Reply {
        if !self.is_authenticated(&request) {
            return Ok(refuse(query.encoding, 401, "Unauthorized", "Unauthorized"));
        }
        let fault = self.shared.lock().fault(query.kind, query.ask);
        match fault {
            Some(Answer::Refuse { code, reason, retry_after }) => {
                let mut answer = refuse(query.encoding, code, reason, "scripted");
                if let Some(seconds) = retry_after {
                    answer.headers_mut().insert(RETRY_AFTER, seconds.into());
                }
                return Ok(answer);
            }
            Some(Answer::Drop) => return Err(io::Error::other("scripted drop")),
            Some(Answer::Replay { content_type, body }) => {
                return Ok(answer(200, content_type, full(body)));
            }
            Some(Answer::Delay(time)) => tokio::time::sleep(time).await,
            None => {}
        }
        match (query.ask, query.kind) {
            (Ask::Event, _) => self.event(request).await,
            (Ask::List | Ask::ListPage, Some(kind)) => self.list(kind, &query).await,
            (Ask::StreamingList | Ask::Watch, Some(kind)) => self.watch(kind, &query),
            (Ask::Other, _) => self.person(request, &query),
            // system:node-proxier may nothing else (section 10.4).
            _ => Ok(forbidden(&query)),
        }
    }

    /// What people ask, once there is a pod.
    fn person(&self, request: Request<Incoming>, query: &Query) -> Reply {
        let missing = |what| Ok(refuse(Encoding::Json, 404, "NotFound", what));
        let path: Vec<String> = request.uri().path().split('/').map(str::to_owned).collect();
        let path: Vec<&str> = path.iter().skip(1).map(String::as_str).collect();
        let state = self.shared.lock();
        let pods = &state.people.pods;
        let is = |pod: &&Value, namespace: &str, name: &str| {
            pod["metadata"]["namespace"] == namespace && pod["metadata"]["name"] == name
        };
        let selector = selector(query).unwrap_or_default();
        let object = match path[..] {
            _ if pods.is_empty() => return Ok(forbidden(query)),
            ["api", "v1", "pods"] => people::pods(pods, None, &selector),
            ["api", "v1", "namespaces", namespace, "pods"] => {
                people::pods(pods, Some(namespace), &selector)
            }
            ["api", "v1", "namespaces", namespace, "pods", name] => {
                match pods.iter().find(|pod| is(pod, namespace, name)) {
                    Some(pod) => pod.clone(),
                    None => return missing(&format!("pods {name:?} not found")),
                }
            }
            ["api", "v1", "namespaces", namespace, "pods", name, "log"] => {
                match pods.iter().find(|pod| is(pod, namespace, name)) {
                    Some(_) => {
                        let log = format!("the log of {name} at 10.200.0.1:443\n");
                        return Ok(answer(200, "text/plain", full(log.into())));
                    }
                    None => return missing(&format!("pods {name:?} not found")),
                }
            }
            ["api", "v1", "namespaces", namespace, "services", name] => {
                match state.store.get(Kind::Service, namespace, name) {
                    Some(service) => service,
                    None => return missing(&format!("services {name:?} not found")),
                }
            }
            ["api", "v1", "namespaces", namespace, "pods", name, "exec"] => {
                let found = pods.iter().any(|pod| is(&pod, namespace, name));
                let (Some(execute), true) = (state.people.execute.clone(), found) else {
                    return missing(&format!("pods {name:?} not found"));
                };
                let pairs = form_urlencoded::parse(request.uri().query().unwrap_or("").as_bytes());
                let command =
                    pairs.filter(|(key, _)| key == "command").map(|(_, word)| word.into());
                let execution =
                    people::Execution { pod: name.to_owned(), command: command.collect() };
                let only_v4 = state.people.only_v4;
                let upgraded = people::exec(request, execution, execute, only_v4)?;
                return Ok(upgraded.map(|()| full(Bytes::new())));
            }
            _ => return Ok(forbidden(query)),
        };
        let body = full(object.to_string().into());
        Ok(answer(200, media_type(Encoding::Json, false), body))
    }

    fn is_authenticated(&self, request: &Request<Incoming>) -> bool {
        let state = self.shared.lock();
        let Some(token) = &state.token else { return true };
        let wanted = format!("Bearer {token}");
        request.headers().get(AUTHORIZATION).is_some_and(|value| value == wanted.as_str())
    }

    async fn list(&self, kind: Kind, query: &Query) -> Reply {
        let selector = match selector(query) {
            Ok(selector) => selector,
            Err(term) => return Ok(refuse(query.encoding, 400, "BadRequest", &term)),
        };
        let mut changed = self.shared.changed.subscribe();
        while self.shared.lock().held.contains(&kind) {
            changed.changed().await.map_err(io::Error::other)?;
        }
        let state = self.shared.lock();
        let items = state.store.list(kind, &selector);
        let start: usize =
            query.parameters.get("continue").and_then(|token| token.parse().ok()).unwrap_or(0);
        // Like a real server, whole lists from the cache unless pages are scripted.
        let limited = query.parameters.contains_key("limit");
        // Like a real server, a limit makes a version mean that very version, be it old.
        let asked = query.parameters.get("resourceVersion").and_then(|v| v.parse().ok());
        let exact = limited && !query.parameters.contains_key("resourceVersionMatch");
        let version = asked.filter(|&asked| exact && asked > 0).unwrap_or(state.store.version);
        let size = state.page_size.filter(|_| limited).unwrap_or(usize::MAX);
        let end = start.saturating_add(size).min(items.len());
        let token = (end < items.len()).then(|| end.to_string());
        let page = items.get(start..end).unwrap_or_default();
        let body = encode::list(query.encoding, kind, page, version, token);
        Ok(answer(200, media_type(query.encoding, false), full(body)))
    }

    fn watch(&self, kind: Kind, query: &Query) -> Reply {
        let selector = match selector(query) {
            Ok(selector) => selector,
            Err(term) => return Ok(refuse(query.encoding, 400, "BadRequest", &term)),
        };
        let version = query.parameters.get("resourceVersion").and_then(|v| v.parse().ok());
        let from = (query.ask == Ask::Watch).then_some(version.unwrap_or(0));
        let shared = Arc::clone(&self.shared);
        let stream = Stream::new(shared, kind, query.encoding, selector, from);
        Ok(answer(200, media_type(query.encoding, true), stream.into_body()))
    }

    async fn event(&self, request: Request<Incoming>) -> Reply {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let Ok(object) = serde_json::from_slice::<Value>(&body) else {
            return Ok(refuse(Encoding::Json, 400, "BadRequest", "no JSON"));
        };
        let mut state = self.shared.lock();
        let name = head.uri.path().rsplit('/').next().unwrap_or_default();
        let stored = match head.method {
            Method::POST => {
                state.events.push(object);
                state.events.last()
            }
            _ => state.events.iter_mut().find(|event| event["metadata"]["name"] == name).map(
                |event| {
                    event["series"] = object["series"].clone();
                    &*event
                },
            ),
        };
        match stored {
            Some(event) => {
                let code = if head.method == Method::POST { 201 } else { 200 };
                Ok(answer(code, media_type(Encoding::Json, false), full(event.to_string().into())))
            }
            None => Ok(refuse(Encoding::Json, 404, "NotFound", name)),
        }
    }
}
