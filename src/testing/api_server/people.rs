//! What people ask and a kube-proxy may not: pods, one Service, and programs in containers, over
//! WebSocket as `kubectl exec` does.
//!
//! Place in the flow: [`super::serve`] turns here before it refuses, once a test has put a pod. The test
//! runs the programs.

use std::io;
use std::process::Output;
use std::sync::Arc;

use futures::SinkExt;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use super::store::Selector;

/// A program that somebody wants to run in a pod.
#[derive(Debug, Clone)]
pub struct Execution {
    pub pod: String,
    pub command: Vec<String>,
}

/// Runs programs; an error is that of the container's runtime. Called on a thread of its own.
pub type Execute = Arc<dyn Fn(&Execution) -> io::Result<Output> + Send + Sync>;

/// What people may see.
#[derive(Default)]
pub(super) struct People {
    pub(super) pods: Vec<Value>,
    pub(super) execute: Option<Execute>,
    /// Servers before 1.30 know no newer one.
    pub(super) only_v4: bool,
}

/// Channels of the protocol.
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;

/// As much as a runtime reads at once.
const PIECE: usize = 4096;

/// Pods of a namespace, or of all.
pub(super) fn pods(pods: &[Value], namespace: Option<&str>, selector: &Selector) -> Value {
    let is_meant = |pod: &&Value| {
        namespace.is_none_or(|namespace| pod["metadata"]["namespace"] == namespace)
            && selector.matches(pod)
    };
    let items: Vec<&Value> = pods.iter().filter(is_meant).collect();
    json!({ "apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items })
}

/// Takes the connection over and runs the program.
pub(super) fn exec(
    mut request: Request<Incoming>,
    execution: Execution,
    execute: Execute,
    only_v4: bool,
) -> Result<Response<()>, io::Error> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let offered = header(SEC_WEBSOCKET_PROTOCOL).unwrap_or_default().to_owned();
    let known: &[&str] =
        if only_v4 { &["v4.channel.k8s.io"] } else { &["v5.channel.k8s.io", "v4.channel.k8s.io"] };
    let protocol = known.iter().find(|known| offered.split(", ").any(|one| one == **known));
    let protocol = protocol.ok_or_else(|| io::Error::other("no known protocol"))?;
    let key = header(SEC_WEBSOCKET_KEY).unwrap_or_default();
    let accept = derive_accept_key(key.as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        // Who goes away reads no answer.
        if let Ok(upgraded) = upgrade.await {
            let io = TokioIo::new(upgraded);
            let stream = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
            let run = move || execute(&execution);
            let done = tokio::task::spawn_blocking(run).await.expect("the test does not panic");
            let _ = tell(stream, done).await;
        }
    });
    Response::builder()
        .status(101)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, accept)
        .header(SEC_WEBSOCKET_PROTOCOL, *protocol)
        .body(())
        .map_err(io::Error::other)
}

async fn tell<S>(mut stream: WebSocketStream<S>, done: io::Result<Output>) -> Result<(), Failure>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    // A real server opens each channel by an empty message.
    for channel in [STDOUT, STDERR, STATUS] {
        stream.send(message(channel, &[])).await?;
    }
    let status = match done {
        Ok(output) => {
            for (channel, bytes) in [(STDOUT, &output.stdout), (STDERR, &output.stderr)] {
                for piece in bytes.chunks(PIECE) {
                    stream.send(message(channel, piece)).await?;
                }
            }
            of_code(output.status.code())
        }
        Err(reason) => json!({
            "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
            "message": format!("Internal error occurred: {reason}"),
        }),
    };
    stream.send(message(STATUS, status.to_string().as_bytes())).await?;
    stream.close(None).await
}

type Failure = tokio_tungstenite::tungstenite::Error;

fn message(channel: u8, bytes: &[u8]) -> Message {
    Message::binary([&[channel], bytes].concat())
}

/// How the kubelet tells the end of a program.
fn of_code(code: Option<i32>) -> Value {
    match code {
        Some(0) => json!({ "metadata": {}, "status": "Success" }),
        code => {
            let code = code.map_or_else(|| "137".to_owned(), |code| code.to_string());
            json!({
                "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "details": { "causes": [{ "reason": "ExitCode", "message": code }] },
            })
        }
    }
}
