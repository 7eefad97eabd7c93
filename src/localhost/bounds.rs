//! How many clients are served at a time, over all NodePorts.

use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::Semaphore;

/// Most TCP connections, each of which has two buffers of [`BUFFER`] bytes and two sockets.
const CONNECTIONS: usize = 2048;
/// Most UDP clients, each of which has a socket.
const CLIENTS: usize = 1024;
/// Bytes on their way in one direction of a TCP connection.
pub const BUFFER: usize = 4096;

/// Places for clients.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// For TCP.
    pub connections: Arc<Semaphore>,
    /// For UDP.
    pub clients: Arc<Semaphore>,
}

impl Bounds {
    /// As many as leave half of the process's file descriptors to the rest of it.
    pub fn of_process() -> Self {
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        Self::new(CONNECTIONS.min(files / 8), CLIENTS.min(files / 4))
    }

    /// These many.
    pub fn new(connections: usize, clients: usize) -> Self {
        let places = |count: usize| Arc::new(Semaphore::new(count.max(1)));
        Bounds { connections: places(connections), clients: places(clients) }
    }
}
