//! The server of an endpoint: it accepts connections and gives each a place and a task of its own.
//!
//! Owns the bounds of an endpoint, and what is counted of them. [`crate::places`] decides who has a place,
//! [`crate::connection`] how long a connection may take for what.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    sync::Arc,
    time::Duration,
};

use axum::Router;
use nix::sys::socket::{MsgFlags, recv};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::Counter, family::Family, gauge::ConstGauge},
    registry::Registry,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use visor::identity::{Caller, Credentials};

use crate::{
    callers::{GitFronts, Peer},
    connection::{End, HEAD, carry, keep_alive},
    open_files::most_open_files,
    places::{Bounds, Full, Party, Place, Places, network},
    tls::handshake,
};

/// The longest time that running requests may go on at the end.
const GRACE: Duration = Duration::from_secs(2);

/// The pause before accepting again when the machine has no descriptor left.
const AGAIN: Duration = Duration::from_millis(100);

/// The shortest time between two warnings of refused connections.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// The connections beyond the bound that may be ending after they gave their places away.
const LEAVING: usize = 64;

impl Bounds {
    /// The bounds of an endpoint. An idle connection with TLS takes some 20 KiB, so that all of them stay below a daemon's
    /// usual memory. 1,024 connections are those of a Prometheus or two, all proxies and convergers, and of hundreds of
    /// people who follow logs; 256 those of one of them with a page and many shells.
    pub const USUAL: Bounds = Bounds { all: 1_024, unknown: 512, each: 256, each_carrier: 256 };

    /// The bounds of bazooka-rm, from which thousands of hosts fetch a slug at once, and which takes a company's pushes by
    /// a few proxies.
    pub const OF_RM: Bounds = Bounds { all: 4_096, unknown: 1_024, each: 256, each_carrier: 1_024 };

    /// Returns these bounds as far as the process's limit of open files lets them: half of the files are for the daemon's
    /// own work.
    fn within(self, open_files: Option<u64>) -> Bounds {
        let files = open_files.and_then(|files| usize::try_from(files / 2).ok()).unwrap_or(usize::MAX);
        let all = self.all.min(files).max(1);
        // In the same proportions, so that nobody has all.
        let of = |most: usize| (most * all / self.all).max(1);
        Bounds { all, unknown: of(self.unknown), each: of(self.each), each_carrier: of(self.each_carrier) }
    }
}

/// The metrics of an endpoint.
#[derive(Clone, Debug, Default)]
pub(crate) struct EndpointMetrics {
    refused: Family<[(&'static str, &'static str); 1], Counter>,
    closed: Family<[(&'static str, &'static str); 1], Counter>,
    /// Requests of web pages and of clients that a browser could be.
    pub foreign: Family<[(&'static str, &'static str); 1], Counter>,
}

impl EndpointMetrics {
    /// Registers the metrics of an endpoint with these places.
    pub fn register(registry: &mut Registry, places: &Places) -> EndpointMetrics {
        let metrics = EndpointMetrics::default();
        let registry = registry.sub_registry_with_prefix("bazooka_endpoint");
        registry.register_collector(Box::new(Open(places.clone())));
        registry.register(
            "connections_refused",
            "Connections that found no place, by the bound that was reached",
            metrics.refused.clone(),
        );
        registry.register(
            "connections_closed",
            "Connections that this daemon closed, by reason",
            metrics.closed.clone(),
        );
        registry.register(
            "requests_refused",
            "Requests that a web page may have sent, by reason",
            metrics.foreign.clone(),
        );
        metrics
    }
}

/// Counts the open connections when it is asked.
#[derive(Debug)]
struct Open(Places);

impl Collector for Open {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let kind = ConstGauge::new(0_i64).metric_type();
        let help = "Open connections, by how their other end is known";
        let mut open = encoder.encode_descriptor("connections", help, None, kind)?;
        for (kind, count) in self.0.taken() {
            let count = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            count.encode(open.encode_family(&[("by", kind)])?)?;
        }
        Ok(())
    }
}

/// A listener's connections.
pub(crate) struct Server {
    /// The routes, with the layers that each request passes.
    pub routes: Router,
    /// The daemon's identity, if there is one.
    pub credentials: Option<Credentials>,
    /// The places.
    pub places: Places,
    /// The proxies that carry connections to git, where there is git.
    pub git: Option<GitFronts>,
    /// The metrics.
    pub metrics: EndpointMetrics,
}

/// Returns free places within these bounds, as far as this process may have connections.
pub(crate) fn places(bounds: Bounds) -> Places {
    Places::new(bounds.within(most_open_files()))
}

impl Server {
    /// Serves connections until `end` is cancelled. Running requests then have 2 s at most.
    ///
    /// # Errors
    /// None now; the listener's are passed over, because they concern one connection or a lack that ends.
    pub async fn serve(self, listener: TcpListener, end: CancellationToken) -> io::Result<()> {
        let server = Arc::new(self);
        let most = server.places.most() + LEAVING;
        let mut open = JoinSet::new();
        let mut refusals = Refusals::default();
        loop {
            tokio::select! {
                () = end.cancelled() => break,
                accepted = listener.accept(), if open.len() < most => match accepted {
                    Ok((stream, address)) => match server.places.take(server.party(address.ip())) {
                        Ok(place) => {
                            // Now: others may be accepted before the connection's task runs, and they evict silent ones.
                            if has_spoken(&stream) {
                                place.spoke();
                            }
                            open.spawn(server.clone().carry(stream, address, place, end.clone()));
                        }
                        Err(full) => {
                            server.refuse(full);
                            refusals.warn(full, address);
                        }
                    },
                    Err(error) => {
                        tracing::warn!(error = %error, "can't accept a connection");
                        sleep(AGAIN).await;
                    }
                },
                Some(ended) = open.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(error = %error, "a connection's task broke off");
                    }
                }
            }
        }
        drop(listener);
        // A followed log would never end.
        let _ = timeout(GRACE, async { while open.join_next().await.is_some() {} }).await;
        Ok(())
    }

    async fn carry(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        place: Place,
        end: CancellationToken,
    ) {
        keep_alive(&stream);
        // Until its first byte, a connection costs nothing but its descriptor.
        let mut first = [0];
        let spoke = tokio::select! {
            spoke = timeout(HEAD, stream.peek(&mut first)) => spoke,
            () = place.left() => return self.closed(End::Evicted),
            () = end.cancelled() => return,
        };
        match spoke {
            Ok(Ok(1..)) => place.spoke(),
            // The client has gone, as a load balancer's check does.
            Ok(_) => return,
            Err(_) => return self.closed(End::Head),
        }
        let ended = match &self.credentials {
            None => carry(stream, Peer::anyone(address), self.routes.clone(), place, end).await,
            Some(credentials) => {
                let stream = tokio::select! {
                    stream = handshake(credentials, stream, address) => stream,
                    () = place.left() => return self.closed(End::Evicted),
                    () = end.cancelled() => return,
                };
                let stream = match stream {
                    Ok(stream) => stream,
                    Err(ended) => return self.closed(ended),
                };
                let peer = Peer::of(&stream, address);
                if let Caller::Known(who) = peer.caller() {
                    if let Err(full) = place.identify(Party::Identity(who.clone())) {
                        tracing::warn!(%who, %address, reason = %full, "a connection is refused");
                        return self.refuse(full);
                    }
                }
                carry(stream, peer, self.routes.clone(), place, end).await
            }
        };
        self.closed(ended);
    }

    /// Returns who a connection is from, before any handshake.
    fn party(&self, address: IpAddr) -> Party {
        let address = network(address);
        let carries = |git: &GitFronts| git.borrow().carriers.contains(&address);
        if self.git.as_ref().is_some_and(carries) { Party::Carrier(address) } else { Party::Address(address) }
    }

    fn refuse(&self, full: Full) {
        self.metrics.refused.get_or_create(&[("reason", full.reason())]).inc();
    }

    fn closed(&self, end: End) {
        if end != End::Usual {
            self.metrics.closed.get_or_create(&[("reason", end.reason())]).inc();
        }
    }
}

/// Reports whether a first byte of the client's has arrived, without taking it.
fn has_spoken(stream: &TcpStream) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(stream.as_raw_fd(), &mut [0], flags).is_ok_and(|bytes| bytes > 0)
}

/// Warns of refused connections, but not of each of thousands.
#[derive(Default)]
struct Refusals {
    warned_at: Option<Instant>,
    more: u64,
}

impl Refusals {
    fn warn(&mut self, full: Full, address: SocketAddr) {
        self.more += 1;
        if self.warned_at.is_some_and(|at| at.elapsed() < WARN_EVERY) {
            return;
        }
        tracing::warn!(%address, reason = %full, connections = self.more, "connections are refused");
        (self.warned_at, self.more) = (Some(Instant::now()), 0);
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::endpoint::listen;

    #[tokio::test]
    async fn a_caller_that_has_spoken_outlasts_a_crowd_of_silent_ones_that_come_after_it() {
        let any = "127.0.0.1:0".parse().expect("an address");
        let (listener, address) = listen(any).await.expect("a free port");
        let bounds = Bounds { all: 40, unknown: 40, each: 20, each_carrier: 20 };
        let server = Server {
            routes: Router::new().route("/", get(|| async { "good" })),
            credentials: None,
            places: Places::new(bounds),
            git: None,
            metrics: EndpointMetrics::register(&mut Registry::default(), &Places::new(bounds)),
        };
        // All of them wait to be accepted: the crowd is accepted at once, right after the caller.
        let mut caller = TcpStream::connect(address).await.expect("it listens");
        caller.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.expect("sent");
        let mut crowd = Vec::new();
        for _ in 0..600 {
            crowd.push(TcpStream::connect(address).await.expect("it listens"));
        }
        let end = CancellationToken::new();
        let serving = tokio::spawn(server.serve(listener, end.clone()));
        let mut answer = String::new();
        caller.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.ends_with("good"), "{answer:?}");
        end.cancel();
        serving.await.expect("it doesn't panic").expect("it serves");
    }
}
