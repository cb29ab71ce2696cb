//! The members of the cluster: the order in which to ask them, and a connection to each.
//!
//! Each endpoint has one connection, made when it is first needed. A client over several endpoints would keep sending
//! to a dead one; here a failing endpoint is left, and asked last for a while.

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use etcd_client::{
    AuthClient, Channel, Client, ClusterClient, ConnectOptions, KvClient, LeaseClient, MaintenanceClient,
    WatchClient,
};
use tokio::time::{Instant, timeout};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::identity::Credentials;

/// The time for which a failed endpoint is asked last: longer than a member's restart or an election.
const SHUN: Duration = Duration::from_secs(5);

/// The interval at which a connection with outstanding calls is probed, so that a dead peer is noticed.
///
/// etcd closes connections that are probed more often than every 5 s, or while idle.
const PROBE_EVERY: Duration = Duration::from_secs(10);

/// The longest time that a probe may go unanswered.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// The number of bytes that may be in flight before the reader has taken them.
///
/// It is enough for a list of thousands of keys to arrive without a pause.
const WINDOW_BYTES: u32 = 1 << 20;

/// The largest message that is accepted.
///
/// A list is one message, and the client's own limit (4 MiB) is too low for a large cluster. etcd itself sends up to
/// this size.
const MESSAGE_BYTES: usize = i32::MAX as usize;

/// The clients of one connection.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) kv: KvClient,
    pub(super) watch: WatchClient,
    pub(super) lease: LeaseClient,
    pub(super) auth: AuthClient,
    pub(super) cluster: ClusterClient,
    pub(super) maintenance: MaintenanceClient,
    pub(super) members: ClusterClient,
    /// Tells a connection from the one made after it.
    pub(super) generation: u64,
}

/// All endpoints of a cluster.
pub(super) struct Endpoints {
    members: Vec<Member>,
    credentials: Option<Credentials>,
    connect_timeout: Duration,
    standing: Mutex<Standing>,
}

struct Member {
    url: String,
    /// Locked while connecting, so that simultaneous calls share one connection.
    connection: tokio::sync::Mutex<Option<Connection>>,
}

/// The health of the endpoints, which decides the order in which they are asked.
struct Standing {
    preferred: usize,
    shunned_until: Vec<Option<Instant>>,
    /// The newest abandoned generation of each endpoint; connections up to it must not be used again.
    dead_generation: Vec<u64>,
    last_generation: u64,
}

impl Endpoints {
    pub(super) fn new(urls: &[String], connect_timeout: Duration, credentials: Option<Credentials>) -> Self {
        let scheme = if credentials.is_some() { "https" } else { "http" };
        let members: Vec<Member> = urls
            .iter()
            .map(|url| Member {
                url: if url.contains("://") { url.clone() } else { format!("{scheme}://{url}") },
                connection: tokio::sync::Mutex::default(),
            })
            .collect();
        let standing = Standing {
            preferred: 0,
            shunned_until: vec![None; members.len()],
            dead_generation: vec![0; members.len()],
            last_generation: 0,
        };
        Self { members, credentials, connect_timeout, standing: Mutex::new(standing) }
    }

    pub(super) fn url(&self, at: usize) -> &str {
        &self.members[at].url
    }

    pub(super) fn urls(&self) -> Vec<String> {
        self.members.iter().map(|member| member.url.clone()).collect()
    }

    /// Returns each endpoint once: the preferred one first, recently failed ones last.
    pub(super) fn order(&self) -> Vec<usize> {
        let now = Instant::now();
        let standing = self.standing();
        let count = self.members.len();
        let mut order: Vec<usize> = (0..count).map(|n| (standing.preferred + n) % count).collect();
        order.sort_by_key(|at| standing.shunned_until[*at].is_some_and(|until| until > now));
        order
    }

    /// Notes that an endpoint answered, so that it is asked first.
    pub(super) fn prefer(&self, at: usize) {
        let mut standing = self.standing();
        standing.preferred = at;
        standing.shunned_until[at] = None;
    }

    /// Notes that an endpoint failed: drops the connection, unless it is a newer one, and asks the endpoint last.
    pub(super) fn leave(&self, at: usize, generation: u64) {
        let mut standing = self.standing();
        let dead = &mut standing.dead_generation[at];
        *dead = generation.max(*dead);
        standing.shunned_until[at] = Some(Instant::now() + SHUN);
    }

    /// Returns a connection to an endpoint, made within `limit` if there is none yet.
    ///
    /// # Errors
    /// [`ConnectError`]; nothing has been sent.
    pub(super) async fn connect(&self, at: usize, limit: Duration) -> Result<Connection, ConnectError> {
        let limit = limit.min(self.connect_timeout);
        let member = &self.members[at];
        let connected = timeout(limit, async {
            let mut slot = member.connection.lock().await;
            let dead = self.standing().dead_generation[at];
            if let Some(connection) = slot.as_ref().filter(|open| open.generation > dead) {
                return Ok(connection.clone());
            }
            *slot = None;
            let generation = {
                let mut standing = self.standing();
                standing.last_generation += 1;
                standing.last_generation
            };
            let connection = open(&member.url, self.credentials.as_ref(), generation).await?;
            *slot = Some(connection.clone());
            Ok(connection)
        })
        .await;
        let connected = connected.unwrap_or(Err(ConnectError::Late(limit)));
        if connected.is_err() {
            self.standing().shunned_until[at] = Some(Instant::now() + SHUN);
        }
        connected
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().expect("no panic happens while the standing is locked")
    }
}

/// A connection that could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// The endpoint's address is invalid, or the endpoint can't be reached.
    #[error(transparent)]
    Transport(#[from] tonic::transport::Error),
    /// etcd's client rejects the connection.
    #[error(transparent)]
    Client(#[from] etcd_client::Error),
    /// There was no connection in time.
    #[error("no connection within {} ms", .0.as_millis())]
    Late(Duration),
}

/// Opens a connection. etcd's own answer comes only with the first call.
async fn open(
    url: &str,
    credentials: Option<&Credentials>,
    generation: u64,
) -> Result<Connection, ConnectError> {
    let mut endpoint = Endpoint::from_shared(url.to_owned())?;
    if let Some(credentials) = credentials {
        // The files are read at each connection, because a connection keeps the certificate that it began with.
        let pem = credentials.pem();
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(pem.authority))
            .identity(tonic::transport::Identity::from_pem(pem.certificate, pem.key));
        endpoint = endpoint.tls_config(tls)?;
    }
    let channel = endpoint
        .http2_keep_alive_interval(PROBE_EVERY)
        .keep_alive_timeout(PROBE_TIMEOUT)
        .keep_alive_while_idle(false)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(2 * WINDOW_BYTES)
        .connect()
        .await?;
    // A member that has lost its leader must report that and end its watches. Without this, a member cut off from the
    // others would stay silent for ever and seem alive.
    let options = ConnectOptions::new().with_require_leader(true);
    let client = Client::from_channel(Channel::Tonic(channel), Some(options)).await?;
    Ok(Connection {
        kv: client.kv_client().max_decoding_message_size(MESSAGE_BYTES),
        watch: client.watch_client().max_decoding_message_size(MESSAGE_BYTES),
        lease: client.lease_client(),
        auth: client.auth_client(),
        cluster: client.cluster_client(),
        maintenance: client.maintenance_client(),
        members: client.cluster_client(),
        generation,
    })
}
