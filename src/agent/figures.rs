//! The thread that asks the kernel for figures, and keeps its sockets.
//!
//! The kernel has whoever closes a netfilter socket wait for those that commit to nf_tables, whoever they
//! are (`nft_rcv_nl_event`; 0.2 s were seen where `nft` loaded 150 000 elements). To read waits for
//! nobody. So a socket is closed only after a failure.

use std::error::Error;
use std::io;
use std::sync::mpsc;
use std::thread;

use tracing::debug;

use crate::conntrack::Statistics;
use crate::kernel::DumpError;
use crate::netlink::Counters;
use crate::netlink::conntrack::Conntrack;
use crate::text::with_causes;

/// What one question does with the sockets.
type Question = Box<dyn FnOnce(&mut Sockets) + Send>;

/// Sockets that were needed so far.
#[derive(Default)]
struct Sockets {
    counters: Option<Counters>,
    conntrack: Option<Conntrack>,
}

/// Asks the thread. Blocking, for as long as the kernel takes; answers are of the moment.
#[derive(Clone)]
pub struct Figures(mpsc::Sender<Question>);

impl Figures {
    /// Starts the thread. It ends with the last who can ask.
    pub fn start() -> io::Result<Figures> {
        let (sender, questions) = mpsc::channel::<Question>();
        let answer = move || {
            let mut sockets = Sockets::default();
            questions.into_iter().for_each(|question| question(&mut sockets));
        };
        thread::Builder::new().name("figures".to_owned()).spawn(answer)?;
        Ok(Figures(sender))
    }

    /// How full the conntrack table is; `None`, and why in the log, if the kernel does not answer.
    pub fn conntrack(&self) -> Option<Statistics> {
        self.ask(|sockets| through(&mut sockets.conntrack, Conntrack::open, Conntrack::statistics))
    }

    /// What `read` makes of the table's counters; `None`, and why in the log, if it fails.
    pub fn counters<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Counters) -> Result<T, DumpError> + Send + 'static,
    ) -> Option<T> {
        self.ask(|sockets| through(&mut sockets.counters, Counters::open, read))
    }

    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Sockets) -> Option<T> + Send + 'static,
    ) -> Option<T> {
        let (sender, answer) = mpsc::sync_channel(1);
        let ask = move |sockets: &mut Sockets| drop(sender.send(question(sockets)));
        self.0.send(Box::new(ask)).ok()?;
        answer.recv().ok().flatten()
    }
}

/// What `read` makes of a socket that is kept: opened before its first question, closed by a failure.
fn through<S, T, O: Error + 'static, R: Error + 'static>(
    kept: &mut Option<S>,
    open: impl FnOnce() -> Result<S, O>,
    read: impl FnOnce(&mut S) -> Result<T, R>,
) -> Option<T> {
    let mut socket = match kept.take() {
        Some(socket) => socket,
        None => open().inspect_err(|reason| unanswered(reason)).ok()?,
    };
    let answer = read(&mut socket).inspect_err(|reason| unanswered(reason)).ok()?;
    *kept = Some(socket);
    Some(answer)
}

fn unanswered(reason: &(dyn Error + 'static)) {
    debug!(reason = with_causes(reason), "The kernel does not say its figures");
}
