//! A steady load, counted request by request.
//!
//! Requests are due at fixed times, whatever became of those before (an open loop), and each counts: as
//! answered with 2xx within the deadline, or as lost with its reason. It never asks twice. A kept-alive
//! connection that the server closed before a request was written on it is opened anew, as every client does.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};

/// How many of the lost are told one by one, and how many different answers are.
const TOLD: usize = 20;

/// What kind of request, and over what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub struct Kind {
    /// POST with a small body instead of GET: not safe to repeat.
    pub post: bool,
    /// A connection for each request instead of a kept one.
    pub new: bool,
}

impl Kind {
    /// Each kind there is.
    pub const ALL: [Kind; 4] = [
        Kind { post: false, new: false },
        Kind { post: false, new: true },
        Kind { post: true, new: false },
        Kind { post: true, new: true },
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = if self.post { "POST" } else { "GET" };
        write!(f, "{method} {}", if self.new { "new" } else { "kept" })
    }
}

impl From<Kind> for String {
    fn from(kind: Kind) -> String {
        kind.to_string()
    }
}

/// What to ask, and how often.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where to ask: each gets its share.
    pub addresses: Vec<SocketAddr>,
    /// The Host headers: each connection asks for one after the other.
    pub hosts: Vec<String>,
    /// Requests a second, over all addresses and kinds.
    pub rate: u32,
    /// Connections at a time for each address and kind.
    pub connections: u32,
    /// Each kind gets its share.
    pub kinds: Vec<Kind>,
    /// An answer after this time is lost.
    pub deadline: Duration,
}

/// What became of the requests of one kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Count {
    /// How many were sent.
    pub sent: u64,
    /// How many were answered with 2xx in time.
    pub answered: u64,
    /// The others, by reason.
    pub lost: BTreeMap<String, u64>,
    /// In milliseconds, of the answered.
    pub p50_ms: f64,
    /// As `p50_ms`.
    pub p99_ms: f64,
    /// As `p50_ms`.
    pub max_ms: f64,
    #[serde(skip)]
    took: Vec<Duration>,
}

impl Count {
    /// How many were lost.
    pub fn lost(&self) -> u64 {
        self.lost.values().sum()
    }
}

/// What became of the requests.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// By kind.
    pub kinds: BTreeMap<Kind, Count>,
    /// The first lost ones, with when and where.
    pub first_lost: Vec<String>,
    /// When the lost ones were sent, in seconds, each with its kind.
    #[serde(skip)]
    pub lost_at: Vec<(f64, Kind)>,
    /// The first line of each answer, how often it came, and when it first did, in seconds.
    pub answers: BTreeMap<String, (u64, f64)>,
    /// By how much a request was sent late, at most: more than a little says that this machine is too busy.
    pub late_ms: f64,
}

impl Report {
    /// How many were sent.
    pub fn sent(&self) -> u64 {
        self.kinds.values().map(|count| count.sent).sum()
    }

    /// How many were lost.
    pub fn lost(&self) -> u64 {
        self.kinds.values().map(Count::lost).sum()
    }

    /// How many were lost of those that are safe to repeat.
    pub fn lost_safe(&self) -> u64 {
        self.kinds.iter().filter(|(kind, _)| !kind.post).map(|(_, count)| count.lost()).sum()
    }

    /// How many were lost of those that are safe to repeat and were sent later than this, in seconds.
    pub fn lost_safe_after(&self, seconds: f64) -> usize {
        self.lost_at.iter().filter(|(at, kind)| !kind.post && *at > seconds).count()
    }

    /// Says on standard error what became of the requests.
    ///
    /// # Panics
    /// If there were none: then nothing was shown.
    #[track_caller]
    pub fn tell(&self) {
        assert!(self.sent() > 0, "nothing was asked");
        let (sent, lost, safe) = (self.sent(), self.lost(), self.lost_safe());
        eprintln!("{sent} requests, {lost} lost, {safe} of them safe to repeat: {:?}", self.first_lost);
    }

    /// Fails the test if any request was lost.
    ///
    /// # Panics
    /// If so.
    #[track_caller]
    pub fn none_lost(self) -> Self {
        self.tell();
        assert_eq!(self.lost(), 0, "requests were lost: {self:#?}");
        self
    }

    /// Fails the test if a request that is safe to repeat was lost.
    ///
    /// # Panics
    /// If so.
    #[track_caller]
    pub fn no_safe_one_lost(self) -> Self {
        self.tell();
        assert_eq!(self.lost_safe(), 0, "requests that are safe to repeat were lost: {self:#?}");
        self
    }
}

/// A load under way, in threads of its own.
pub struct Load {
    begin: std::time::Instant,
    stop: Arc<AtomicBool>,
    report: Arc<Mutex<Report>>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Begins. It stands where the calling thread stands, in a network namespace or not.
    pub fn start(options: LoadOptions) -> Load {
        let (stop, report) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Report>>::default());
        let begin = std::time::Instant::now();
        let shared = Shared { begin, options, stop: stop.clone(), report: report.clone() };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a runtime can be made");
            runtime.block_on(shared.run());
        });
        Load { begin, stop, report, thread: Some(thread) }
    }

    /// For how long it has gone on, in seconds; what it reports is told in this time.
    pub fn seconds(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    /// What has become of the requests so far.
    pub fn so_far(&self) -> Report {
        finished(self.report.lock().expect("no worker panics with it").clone())
    }

    /// Waits until this answer (its first line) has come, and says when it first did.
    pub fn answers(&self, first_line: &str) -> f64 {
        crate::until(&format!("the answer {first_line:?} comes"), 2 * crate::SOON, || {
            let report = self.report.lock().expect("no worker panics with it");
            report
                .answers
                .get(first_line)
                .map(|(_, at)| *at)
                .ok_or_else(|| format!("{:?}, lost: {:?}", report.answers, report.first_lost))
        })
    }

    /// Ends it, once what is under way has ended.
    ///
    /// # Panics
    /// If a worker panicked.
    pub fn stop(mut self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the load doesn't panic");
        }
        self.so_far()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[derive(Clone)]
struct Shared {
    begin: std::time::Instant,
    options: LoadOptions,
    stop: Arc<AtomicBool>,
    report: Arc<Mutex<Report>>,
}

/// One connection's place in the load.
struct Worker {
    shared: Shared,
    address: SocketAddr,
    kind: Kind,
    kept: Option<SendRequest<Full<Bytes>>>,
    /// Which of the hosts is next.
    next: usize,
}

impl Shared {
    async fn run(self) {
        let options = &self.options;
        let groups: Vec<(SocketAddr, Kind)> = options
            .addresses
            .iter()
            .flat_map(|address| options.kinds.iter().map(move |kind| (*address, *kind)))
            .collect();
        let workers = u32::try_from(groups.len()).expect("few") * options.connections;
        let every = Duration::from_secs(1) * workers / options.rate;
        let begin = Instant::from_std(self.begin);
        let mut running = Vec::new();
        for nth in 0..workers {
            let (address, kind) = groups[nth as usize % groups.len()];
            let worker = Worker { shared: self.clone(), address, kind, kept: None, next: nth as usize };
            running.push(tokio::spawn(worker.work(begin, every * nth / workers, every)));
        }
        for worker in running {
            worker.await.expect("a worker doesn't panic");
        }
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().expect("no worker panics with it")
    }
}

impl Worker {
    async fn work(mut self, begin: Instant, first: Duration, every: Duration) {
        let mut due = begin + first;
        loop {
            sleep_until(due).await;
            if self.shared.stop.load(Ordering::Relaxed) {
                return;
            }
            let sent = Instant::now();
            let asked = timeout(self.shared.options.deadline, self.ask()).await;
            let became = match asked {
                Ok(Ok((status, body))) if (200..300).contains(&status) => Ok(body),
                Ok(Ok((status, _))) => Err(format!("status {status}")),
                Ok(Err(error)) => Err(error),
                Err(_) => Err("too late".to_owned()),
            };
            if became.is_err() || self.kind.new {
                self.kept = None;
            }
            self.note(begin, due, sent, became);
            due += every;
        }
    }

    fn note(&self, begin: Instant, due: Instant, sent: Instant, became: Result<String, String>) {
        let at = (sent - begin).as_secs_f64();
        let mut report = self.shared.report();
        let report = &mut *report;
        report.late_ms = report.late_ms.max((sent - due).as_secs_f64() * 1000.0);
        let count = report.kinds.entry(self.kind).or_default();
        count.sent += 1;
        match became {
            Ok(body) => {
                count.answered += 1;
                count.took.push(sent.elapsed());
                let line = body.lines().next().unwrap_or_default();
                if let Some((times, _)) = report.answers.get_mut(line) {
                    *times += 1;
                } else if report.answers.len() < TOLD {
                    report.answers.insert(line.to_owned(), (1, begin.elapsed().as_secs_f64()));
                }
            }
            Err(reason) => {
                if report.first_lost.len() < TOLD {
                    let (kind, address) = (self.kind, self.address);
                    report.first_lost.push(format!("at {at:.3} s, {kind} of {address}: {reason}"));
                }
                report.lost_at.push((at, self.kind));
                *count.lost.entry(reason).or_default() += 1;
            }
        }
    }

    async fn ask(&mut self) -> Result<(u16, String), String> {
        let is_open = match &mut self.kept {
            Some(sender) => !sender.is_closed() && sender.ready().await.is_ok(),
            None => false,
        };
        if !is_open {
            self.kept = None;
        }
        let sender = match &mut self.kept {
            Some(sender) => sender,
            none => none.insert(connect(self.address).await.map_err(|error| format!("connect: {error}"))?),
        };
        let (method, body) = if self.kind.post { (Method::POST, "a=1") } else { (Method::GET, "") };
        let hosts = &self.shared.options.hosts;
        let host = &hosts[self.next % hosts.len()];
        self.next += 1;
        let request = Request::builder()
            .method(method)
            .uri("/")
            .header("host", host)
            .body(Full::new(Bytes::from_static(body.as_bytes())))
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| format!("send: {error}"))?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|error| format!("body: {error}"))?;
        Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    }
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        // Its end shows in the request that was under way.
        let _ = connection.await;
    });
    Ok(sender)
}

/// The report with its percentiles.
fn finished(mut report: Report) -> Report {
    for count in report.kinds.values_mut() {
        count.took.sort_unstable();
        let at = |share: f64| {
            let last = count.took.len().saturating_sub(1);
            let index = ((last as f64) * share) as usize;
            count.took.get(index).map_or(0.0, |took| took.as_secs_f64() * 1000.0)
        };
        (count.p50_ms, count.p99_ms, count.max_ms) = (at(0.5), at(0.99), at(1.0));
    }
    for count in report.kinds.values_mut() {
        count.took = Vec::new();
    }
    report
}
