//! What changes and fails while clients dial: endpoints, Services, policies, servers, the agent.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use kubeweir::model::{Family, Protocol};
use kubeweir::testing::lab::{Place, Server, external_ip, pod_ip, remote_pod_ip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::lines::{AgentEvent, Line, Member, Pen, Span, State};
use crate::manifests::{Web, bystanders};
use crate::node::Node;

/// Where the record's own servers listen, which can be stopped.
const TARGET: u16 = 9100;

/// Every place a server can be at: two pods of the node, two of another.
const PODS: [Place; 4] = [Place::Pod(0), Place::Pod(1), Place::RemotePod(0), Place::RemotePod(1)];

/// A Service that clients dial.
struct Dialled {
    name: &'static str,
    n: usize,
    node_port: u16,
    state: State,
}

/// The Services: their names, the numbers of their ClusterIPs, their NodePorts.
pub const SERVICES: [(&str, usize, u16); 2] = [("one", 10, 30_010), ("two", 11, 30_011)];

/// Something to do.
#[derive(Clone, Copy)]
enum Act {
    Members,
    Drain,
    DrainAll,
    Fail,
    Restart,
    Policy,
    InternalPolicy,
    Ranges,
    NodePort,
    Delete,
    Empty,
    Bystanders,
    Kill,
    Terminate,
}

/// A round: what happens more often in clusters stands here more often.
const DECK: [Act; 16] = [
    Act::Members,
    Act::Members,
    Act::Drain,
    Act::DrainAll,
    Act::Fail,
    Act::Fail,
    Act::Restart,
    Act::Policy,
    Act::InternalPolicy,
    Act::Ranges,
    Act::NodePort,
    Act::Delete,
    Act::Empty,
    Act::Bystanders,
    Act::Kill,
    Act::Terminate,
];

pub struct World {
    pub node: Node,
    pen: Pen,
    random: StdRng,
    services: Vec<Dialled>,
    servers: Vec<(Place, Option<Server>)>,
    round: usize,
}

impl World {
    /// Two Services with endpoints, all servers, and an agent that has everything in force.
    pub fn new(pen: Pen, seed: u64) -> World {
        let service = |(name, n, node_port)| Dialled { name, n, node_port, state: State::served() };
        let mut world = World {
            node: Node::new(),
            pen,
            random: StdRng::seed_from_u64(seed),
            services: SERVICES.into_iter().map(service).collect(),
            servers: PODS.into_iter().map(|place| (place, None)).collect(),
            round: 0,
        };
        for at in 0..PODS.len() {
            world.start_server(at);
        }
        for at in 0..SERVICES.len() {
            world.services[at].state.members = PODS.iter().map(|place| member(*place)).collect();
            world.write(at);
        }
        world.start_agent();
        world
    }

    /// Does everything that can be done, in a random order, with pauses of random length.
    pub fn round(&mut self) {
        let mut deck = DECK;
        deck.shuffle(&mut self.random);
        for act in deck {
            self.act(act);
            // Now and then something comes at once; mostly long enough for one state to be the only one.
            let short = self.random.random_bool(0.3);
            self.pause(if short { 50..600 } else { 2200..4500 });
        }
    }

    fn act(&mut self, act: Act) {
        let at = self.random.random_range(0..self.services.len());
        match act {
            Act::Members => self.choose_members(at),
            Act::Drain => self.drain(at),
            Act::DrainAll => self.drain_all(at),
            Act::Fail => self.fail(),
            Act::Restart => self.restart_server(),
            Act::Policy => self.for_a_while(at, |state| state.external_local ^= true),
            Act::InternalPolicy => self.for_a_while(at, |state| state.internal_local ^= true),
            // The only one that is dialled by its load balancer's address.
            Act::Ranges => self.for_a_while(0, |state| state.closed ^= true),
            Act::NodePort => self.for_a_while(at, |state| state.node_port ^= true),
            Act::Delete => self.for_a_while(at, |state| state.present ^= true),
            Act::Empty => {
                self.toggle(at, |state| state.members.clear());
                // Long enough for somebody to be refused, so that each record has that.
                self.pause(1500..4000);
                self.choose_members(at);
            }
            Act::Bystanders => {
                self.round += 1;
                self.node.write("bystanders", &bystanders(1000, 100, self.round));
            }
            Act::Kill => self.interrupt(AgentEvent::Killed),
            Act::Terminate => self.interrupt(AgentEvent::Terminated),
        }
    }

    /// Undoes what turns clients away, so that the end shows Services that are served.
    pub fn calm_down(&mut self) {
        for at in 0..self.servers.len() {
            if self.servers[at].1.is_none() {
                self.start_server(at);
            }
        }
        for at in 0..self.services.len() {
            let members = PODS.iter().map(|place| member(*place)).collect();
            let calm = State { members, ..State::served() };
            self.toggle(at, |state| *state = calm);
        }
        self.node.settled();
        self.pause(2500..2600);
    }

    fn pause(&mut self, millis: std::ops::Range<u64>) {
        std::thread::sleep(Duration::from_millis(self.random.random_range(millis)));
    }

    /// Writes the manifests of a Service.
    fn write(&mut self, at: usize) {
        let from = self.pen.now();
        let service = &self.services[at];
        let Dialled { name, n, node_port, state } = service;
        if state.present {
            let mut endpoints: Vec<Place> =
                state.members.iter().map(|member| place(&member.server)).collect();
            endpoints.sort_by_key(|place| server_name(*place));
            let mut web = Web::new(name, *n, &endpoints);
            web.target = TARGET;
            web.node_port = state.node_port.then_some(*node_port);
            web.load_balancer_ips = Family::BOTH.map(|family| external_ip(*n, family)).to_vec();
            web.internal_local = state.internal_local;
            web.external_local = state.external_local;
            if state.closed {
                web.source_ranges = vec!["192.0.2.99/32", "2001:db8:99::/64"];
            }
            let mut objects = web.objects();
            for slice in &mut objects[1..] {
                for (endpoint, place) in
                    slice["endpoints"].as_array_mut().unwrap().iter_mut().zip(&endpoints)
                {
                    let name = server_name(*place);
                    let draining = state.members.iter().any(|m| m.server == name && m.draining);
                    endpoint["conditions"] =
                        json!({ "ready": !draining, "serving": true, "terminating": draining });
                }
            }
            self.node.write(name, &objects);
        } else {
            let path = self.node.manifests().join(format!("{name}.json"));
            fs::remove_file(path).unwrap();
        }
        let (span, state) = (Span { from, to: self.pen.now() }, state.clone());
        self.pen.write(Line::Change { span, service: (*name).to_owned(), state });
    }

    fn toggle(&mut self, at: usize, change: impl FnOnce(&mut State)) {
        let before = self.services[at].state.clone();
        change(&mut self.services[at].state);
        if self.services[at].state != before {
            self.write(at);
        }
    }

    /// Other endpoints: any of those that run.
    fn choose_members(&mut self, at: usize) {
        let up = self.up();
        let count = self.random.random_range(1..=up.len());
        let chosen: Vec<Place> = up.choose_multiple(&mut self.random, count).copied().collect();
        self.toggle(at, |state| state.members = chosen.into_iter().map(member).collect());
    }

    /// An endpoint terminates and serves on for a while, then it is gone.
    fn drain(&mut self, at: usize) {
        let members = self.services[at].state.members.len();
        if members == 0 || !self.services[at].state.present {
            return self.choose_members(at);
        }
        let which = self.random.random_range(0..members);
        self.toggle(at, |state| state.members[which].draining = true);
        // Longer than a change may take, so that for a while this is the only possible state.
        self.pause(2500..5000);
        self.toggle(at, |state| drop(state.members.remove(which)));
        self.replace_none(at);
    }

    /// A whole Service terminates, with every server that runs: whatever connection is open is asked
    /// while its server drains, so that each record has that.
    fn drain_all(&mut self, at: usize) {
        let all: Vec<Member> = self.up().into_iter().map(member).collect();
        let draining = all.into_iter().map(|member| Member { draining: true, ..member }).collect();
        self.toggle(at, |state| state.members = draining);
        self.pause(4000..5000);
        self.toggle(at, |state| state.members.clear());
        self.replace_none(at);
    }

    /// Where servers run.
    fn up(&self) -> Vec<Place> {
        self.servers.iter().filter(|(_, s)| s.is_some()).map(|(place, _)| *place).collect()
    }

    /// Whoever lost the last endpoint gets others a moment later.
    fn replace_none(&mut self, at: usize) {
        if self.services[at].state.members.is_empty() {
            self.pause(0..1000);
            self.choose_members(at);
        }
    }

    /// A server dies; a moment later every Service learns of it. It comes back with the next start.
    fn fail(&mut self) {
        let up: Vec<usize> =
            (0..self.servers.len()).filter(|&at| self.servers[at].1.is_some()).collect();
        // One is always left.
        if up.len() < 2 {
            return self.restart_server();
        }
        let at = *up.choose(&mut self.random).unwrap();
        self.stop_server(at);
        self.pause(100..1500);
        let name = server_name(self.servers[at].0);
        for service in 0..self.services.len() {
            self.toggle(service, |state| state.members.retain(|member| member.server != name));
            self.replace_none(service);
        }
    }

    /// A server that is down comes back, or one restarts in place while everybody counts on it.
    fn restart_server(&mut self) {
        let at = match self.servers.iter().position(|(_, server)| server.is_none()) {
            Some(at) => at,
            None => {
                let at = self.random.random_range(0..self.servers.len());
                self.stop_server(at);
                self.pause(50..800);
                at
            }
        };
        self.start_server(at);
    }

    fn for_a_while(&mut self, at: usize, toggle: fn(&mut State)) {
        self.toggle(at, toggle);
        self.pause(100..4000);
        self.toggle(at, toggle);
    }

    /// The agent ends; perhaps something changes while nobody follows; then it starts again.
    fn interrupt(&mut self, how: AgentEvent) {
        self.agent(how);
        match how {
            AgentEvent::Killed => self.node.kill(),
            _ => self.terminate(),
        }
        if self.random.random_bool(0.5) {
            let at = self.random.random_range(0..self.services.len());
            self.choose_members(at);
        }
        self.pause(0..1500);
        self.start_agent();
    }

    /// The agent ends in order, rather than by its node's SIGKILL.
    fn terminate(&mut self) {
        let pid = self.node.pid();
        kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGTERM).unwrap();
        let process = format!("/proc/{pid}");
        self.node.wait("the end after SIGTERM", || fs::metadata(&process).is_err());
        self.node.kill();
    }

    fn start_agent(&mut self) {
        self.agent(AgentEvent::Started);
        self.node.start_and_settle(&[]);
        self.agent(AgentEvent::Settled);
    }

    fn agent(&self, event: AgentEvent) {
        self.pen.write(Line::Agent { at: self.pen.now(), event });
    }

    fn start_server(&mut self, at: usize) {
        let place = self.servers[at].0;
        let name = server_name(place);
        let ip = |family| match place {
            Place::Pod(n) => pod_ip(n, family),
            Place::RemotePod(n) => remote_pod_ip(n, family),
            other => panic!("no server at {other:?}"),
        };
        let addresses = Family::BOTH.map(|family| SocketAddr::new(ip(family), TARGET));
        let from = self.pen.now();
        let netns = self.node.lab.netns(place);
        let protocols = [Protocol::Tcp, Protocol::Udp];
        self.servers[at].1 = Some(Server::start(netns, &name, &protocols, &addresses).unwrap());
        let span = Span { from, to: self.pen.now() };
        self.pen.write(Line::Server { span, server: name, up: true });
    }

    fn stop_server(&mut self, at: usize) {
        let from = self.pen.now();
        drop(self.servers[at].1.take());
        let (server, span) = (server_name(self.servers[at].0), Span { from, to: self.pen.now() });
        self.pen.write(Line::Server { span, server, up: false });
    }
}

fn server_name(place: Place) -> String {
    match place {
        Place::Pod(n) => format!("pod-{n}"),
        Place::RemotePod(n) => format!("remote-{n}"),
        other => panic!("no server at {other:?}"),
    }
}

fn place(server: &str) -> Place {
    *PODS.iter().find(|place| server_name(**place) == server).expect("a server of ours")
}

fn member(place: Place) -> Member {
    let local = matches!(place, Place::Pod(_));
    Member { server: server_name(place), local, draining: false }
}
