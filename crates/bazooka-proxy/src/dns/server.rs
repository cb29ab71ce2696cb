//! The sockets of discovery by name: UDP and TCP on one address.
//!
//! Owns a thread of its own, so that neither a plan nor a reload keeps a question waiting, and the limits: connections,
//! in all and of one address, and how long one may be silent. Where there are that many, the one that has been silent
//! longest gives way to a new one.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    time::Duration,
};

use bazooka_daemon::{Bounds, Party, Places};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Zone,
    wire::{Transport, respond},
};
use crate::{directory::Shown, metrics::ProxyMetrics};

/// How many connections there may be at once: in all, and of one address.
const BOUNDS: Bounds = Bounds { all: 256, unknown: 256, each: 64, each_carrier: 64 };

/// How many connections may be ending after they gave way.
const LEAVING: usize = 16;

/// How long a connection may say nothing.
const SILENCE: Duration = Duration::from_secs(5);

/// How soon accepting is tried again where the machine has no descriptor left.
const AGAIN: Duration = Duration::from_millis(100);

/// The thread that answers has panicked.
#[derive(Debug, thiserror::Error)]
#[error("their thread has panicked")]
pub struct ThreadPanicked;

/// The sockets, opened and not served yet.
#[derive(Debug)]
pub struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

/// The inputs of the answers.
#[derive(Clone)]
pub struct Answers {
    /// The directory of instances.
    pub directory: Shown,
    /// The domain that is answered for.
    pub zone: Zone,
    /// The counters of answers.
    pub metrics: ProxyMetrics,
}

impl Sockets {
    /// Opens them.
    ///
    /// # Errors
    /// If one can't be.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let (udp, tcp) = (UdpSocket::bind(address)?, TcpListener::bind(address)?);
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Sockets { udp, tcp })
    }

    /// Answers until `shutdown`, on a thread of its own. The returned future waits for the thread's end.
    ///
    /// # Errors
    /// If there can't be another thread, or the sockets can't be watched.
    pub fn serve(
        self,
        answers: Answers,
        shutdown: CancellationToken,
    ) -> io::Result<impl Future<Output = Result<(), ThreadPanicked>> + Send + use<>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (udp, tcp) = {
            let _inside = runtime.enter();
            (tokio::net::UdpSocket::from_std(self.udp)?, tokio::net::TcpListener::from_std(self.tcp)?)
        };
        let serving = async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = packets(&udp, &answers) => {}
                () = connections(&tcp, &answers) => {}
            }
        };
        let (done, is_done) = oneshot::channel();
        std::thread::Builder::new().name("dns".into()).spawn(move || {
            runtime.block_on(serving);
            // The daemon may have ended already.
            let _ = done.send(());
        })?;
        Ok(async move { is_done.await.map_err(|_| ThreadPanicked) })
    }
}

impl Answers {
    fn respond(&self, packet: &[u8], transport: Transport, turn: usize) -> Option<Vec<u8>> {
        let directory = self.directory.borrow().clone();
        let (code, bytes) = respond(directory.as_deref(), &self.zone, packet, transport, turn)?;
        self.metrics.dns_answered(code);
        Some(bytes)
    }
}

async fn packets(socket: &tokio::net::UdpSocket, answers: &Answers) {
    // As long as a packet can be: one that is cut couldn't be read.
    let mut packet = vec![0; 65_535];
    let mut turn: usize = 0;
    loop {
        // What a lost client's machine says of an earlier answer comes as an error here.
        let Ok((length, client)) = socket.recv_from(&mut packet).await else {
            tokio::task::yield_now().await;
            continue;
        };
        turn = turn.wrapping_add(1);
        if let Some(answer) = answers.respond(&packet[..length], Transport::Udp, turn) {
            // A lost packet is asked for again.
            let _ = socket.send_to(&answer, client).await;
        }
    }
}

async fn connections(listener: &tokio::net::TcpListener, answers: &Answers) {
    let mut open = JoinSet::new();
    let places = Places::new(BOUNDS);
    let mut turn: usize = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if open.len() < BOUNDS.all + LEAVING => accepted,
            Some(ended) = open.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(error = %error, "a connection that asks about names broke off");
                }
                continue;
            }
        };
        let (mut stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = %error, "can't accept a connection");
                sleep(AGAIN).await;
                continue;
            }
        };
        // A question and its answer take no time, so every connection counts as silent, and none is refused.
        let Ok(place) = places.take(Party::of(client.ip())) else { continue };
        turn = turn.wrapping_add(1);
        let answers = answers.clone();
        open.spawn(async move {
            // However it ends, the client knows as much.
            let asking = async {
                while let Ok(Ok(true)) = timeout(SILENCE, exchange(&mut stream, &answers, turn)).await {
                    place.end();
                }
            };
            tokio::select! {
                () = asking => {}
                () = place.left() => {}
            }
        });
    }
}

/// One question and its answer. Returns whether there may be another.
async fn exchange(stream: &mut tokio::net::TcpStream, answers: &Answers, turn: usize) -> io::Result<bool> {
    let length = stream.read_u16().await?;
    let mut packet = vec![0; usize::from(length)];
    stream.read_exact(&mut packet).await?;
    let Some(answer) = answers.respond(&packet, Transport::Tcp, turn) else { return Ok(false) };
    let Ok(length) = u16::try_from(answer.len()) else { return Ok(false) };
    stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await?;
    Ok(true)
}
