//! The output of instances over HTTP: `GET /logs`.
//!
//! Owns the answer to a reader: the last lines of several instances, merged in order of time, then new ones as they are
//! written. It only reads the files that shims write, those of ended instances too while they are kept. A reader costs
//! a fixed amount of memory, however much it asked for and however slowly it reads, and readers are bounded.

mod bounds;
mod feeds;
mod files;
mod news;
mod outputs;
mod past;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    body::{Body, Bytes},
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use bazooka_daemon::{CallsFrom, Cluster, refused};
use futures::{StreamExt, future::ready, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{broadcast::error::RecvError, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use visor::{
    access::Act,
    identity::Caller,
    names::{AppName, InstanceId, ProcName},
};

use super::{folders::Folders, metrics::Metrics, pools::Pools};
use bounds::{Readers, Rights};
use feeds::{Feeder, Feeds, Joined, catch_up};
use files::{Cursors, Kept, ends};
pub use outputs::{Outputs, Owner, Procs, Table};
use past::Past;

/// The number of lines without a `lines` parameter.
const USUAL_LINES: usize = 100;

/// The most lines from the past.
const MOST_LINES: usize = 10_000;

/// The most lines written out at a time.
const PIECE_LINES: usize = 256;

/// The most bytes written out at a time; a single line may be longer.
const PIECE_BYTES: usize = 32 << 10;

/// The pieces that wait for a slow reader.
const PIECES: usize = 2;

/// The time after which a reader that takes nothing has its answer ended. A follower asks again, from its last line on.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);

/// The query of a reader.
#[derive(Clone, Debug, Deserialize)]
pub struct LogQuery {
    app: AppName,
    proc: Option<ProcName>,
    instance: Option<InstanceId>,
    n: Option<usize>,
    #[serde(default)]
    follow: bool,
}

/// The instances whose output is asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    app: AppName,
    proc: Option<ProcName>,
    instance: Option<InstanceId>,
}

impl Asked {
    fn is_of(&self, id: InstanceId, owner: &Owner) -> bool {
        self.app == owner.app
            && self.proc.as_ref().is_none_or(|proc| *proc == owner.proc)
            && self.instance.is_none_or(|instance| instance == id)
    }
}

/// A line as it is sent.
#[derive(Serialize)]
struct Line<'a> {
    at: String,
    app: &'a AppName,
    proc: &'a ProcName,
    instance: InstanceId,
    stream: &'static str,
    line: &'a str,
    /// True for a piece of a line that goes on in the next record of this instance and stream.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
}

/// The answers about this host's output. Cheap to clone.
#[derive(Clone)]
pub struct Logs {
    teller: Teller,
    readers: Readers,
    rights: Rights,
    cluster: Cluster,
    shutdown: CancellationToken,
}

impl Logs {
    /// Creates the answers about this host's output, and the loop that reads new output for followers.
    pub fn create(
        folders: Folders,
        pools: Pools,
        outputs: Outputs,
        metrics: Metrics,
        cluster: Cluster,
        shutdown: CancellationToken,
    ) -> (Logs, Feeder) {
        let (feeds, feeder) = Feeds::create(folders.clone(), pools.followed.clone(), outputs.clone());
        let teller = Teller { folders, pools, outputs, feeds };
        let (readers, rights) = (Readers::new(metrics), Rights::new(cluster.clone()));
        (Logs { teller, readers, rights, cluster, shutdown }, feeder)
    }

    /// Returns the route.
    pub fn routes(self) -> Router {
        Router::new().route("/logs", get(logs)).with_state(self)
    }
}

async fn logs(
    State(logs): State<Logs>,
    Extension(caller): Extension<Caller>,
    from: CallsFrom,
    query: Result<Query<LogQuery>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(error) => {
            let hint = "GET /logs?app=A[&proc=P][&instance=ID][&n=100][&follow=true]";
            let words = serde_json::json!({"error": error.body_text(), "hint": hint});
            return (StatusCode::BAD_REQUEST, Json(words)).into_response();
        }
    };
    match logs.cluster.may(&caller, Act::App, Some(&query.app)).await {
        Ok(true) => {}
        Ok(false) => return refused(&caller).into_response(),
        Err(error) => {
            return (StatusCode::SERVICE_UNAVAILABLE, format!("can't tell who may: {error}\n"))
                .into_response();
        }
    }
    let admitted = match logs.readers.admit(&caller, from) {
        Ok(admitted) => admitted,
        Err(too_many) => return too_many.into_response(),
    };
    // Only a few pieces are queued, so that a slow reader slows the reading down.
    let (send, pieces) = mpsc::channel::<io::Result<Bytes>>(PIECES);
    let right = logs.rights.of(&caller, &query.app);
    // The response owns this task: it ends as soon as the reader has gone, and its panic ends the response.
    let whole = Arc::new(AtomicBool::new(true));
    let is_whole = whole.clone();
    tokio::spawn(async move {
        let (shutdown, gone) = (logs.shutdown.clone(), send.clone());
        tokio::select! {
            told = logs.teller.tell(query, &send) => whole.store(told.is_ok(), Ordering::Relaxed),
            () = gone.closed() => {}
            // A follower would never end.
            () = shutdown.cancelled() => {}
            () = right.gone() => {}
        }
    });
    let kind = [("content-type", "application/x-ndjson")];
    let pieces = ReceiverStream::new(pieces).map(move |piece| {
        // The reader has its place until the connection has let go of the answer.
        let _held = &admitted;
        piece
    });
    // An answer that is cut short must not look like a whole one.
    let cut = stream::once(async move {
        let cut = io::Error::new(io::ErrorKind::TimedOut, "the reader takes nothing");
        (!is_whole.load(Ordering::Relaxed)).then_some(Err(cut))
    });
    let pieces = pieces.chain(cut.filter_map(ready));
    (kind, Body::from_stream(pieces)).into_response()
}

/// The early end of an answer: its reader has gone, or takes nothing.
struct Over;

type Pieces = mpsc::Sender<io::Result<Bytes>>;

async fn give(pieces: &Pieces, piece: Bytes) -> Result<(), Over> {
    timeout(TAKEN_WITHIN, pieces.send(Ok(piece))).await.map_err(|_| Over)?.map_err(|_| Over)
}

/// The output of this host, as a reader is told it. Cheap to clone.
#[derive(Clone)]
struct Teller {
    folders: Folders,
    pools: Pools,
    outputs: Outputs,
    feeds: Feeds,
}

impl Teller {
    /// Sends the past lines and, if the reader follows, new ones.
    async fn tell(&self, query: LogQuery, pieces: &Pieces) -> Result<(), Over> {
        let lines = query.n.unwrap_or(USUAL_LINES).min(MOST_LINES);
        let LogQuery { app, proc, instance, follow, .. } = query;
        let asked = Asked { app, proc, instance };
        if !follow {
            let (folders, ids) = (self.folders.clone(), self.outputs.asked(&asked).into_keys());
            let upto = self.pools.past.run(move || ends(&folders, ids)).await.map_err(|_| Over)?;
            return self.tell_past(&asked, Arc::new(upto), lines, pieces).await;
        }
        let Joined { mut at, mut batches } = self.feeds.join(&asked).await.ok_or(Over)?;
        self.tell_past(&asked, at.clone(), lines, pieces).await?;
        loop {
            match batches.recv().await {
                Ok(batch) => {
                    for piece in &batch.pieces {
                        give(pieces, piece.clone()).await?;
                    }
                    at = batch.end.clone();
                }
                Err(RecvError::Lagged(_)) => {
                    let joined = self.feeds.join(&asked).await.ok_or(Over)?;
                    self.tell_missed(&asked, &at, joined.at.clone(), pieces).await?;
                    Joined { at, batches } = joined;
                }
                Err(RecvError::Closed) => return Err(Over),
            }
        }
    }

    async fn tell_past(
        &self,
        asked: &Asked,
        upto: Arc<Cursors>,
        lines: usize,
        pieces: &Pieces,
    ) -> Result<(), Over> {
        let folders = self.folders.clone();
        let past = self.pools.past.run(move || Past::find(&folders, &upto, lines)).await;
        let past = Arc::new(past.map_err(|_| Over)?);
        for range in past.pieces() {
            let (folders, outputs, asked) = (self.folders.clone(), self.outputs.clone(), asked.clone());
            let past = past.clone();
            let read = move || render(&asked.app, &outputs.asked(&asked), &past.read(&folders, range));
            for piece in self.pools.past.run(read).await.map_err(|_| Over)? {
                give(pieces, piece).await?;
            }
        }
        Ok(())
    }

    /// Sends what a late follower has missed: from one position to another.
    async fn tell_missed(
        &self,
        asked: &Asked,
        from: &Cursors,
        upto: Arc<Cursors>,
        pieces: &Pieces,
    ) -> Result<(), Over> {
        let (mut at, mut is_more) = (from.clone(), true);
        while is_more {
            let (folders, outputs) = (self.folders.clone(), self.outputs.clone());
            let (asked, upto) = (asked.clone(), upto.clone());
            let read = move || catch_up(&folders, &asked.app, &outputs.asked(&asked), at, &upto);
            let found;
            (found, at, is_more) = self.pools.past.run(read).await.map_err(|_| Over)?;
            for piece in found {
                give(pieces, piece).await?;
            }
        }
        Ok(())
    }
}

/// Renders lines, each as one of JSON, in pieces.
fn render(app: &AppName, procs: &Procs, lines: &[(InstanceId, Kept)]) -> Vec<Bytes> {
    let (mut pieces, mut text) = (Vec::new(), Vec::new());
    for (id, kept) in lines {
        // The output of an instance that is no longer in the table has been removed.
        let Some(proc) = procs.get(id) else { continue };
        let at = Timestamp::from_microsecond(kept.at_us).unwrap_or_default();
        let at = format!("{at:.6}");
        let (line, partial) = (&kept.line, kept.goes_on);
        let line = Line { at, app, proc, instance: *id, stream: kept.stream, line, partial };
        serde_json::to_writer(&mut text, &line).expect("a line is always valid JSON");
        text.push(b'\n');
        if text.len() >= PIECE_BYTES {
            pieces.push(std::mem::take(&mut text).into());
        }
    }
    pieces.extend((!text.is_empty()).then(|| text.into()));
    pieces
}

#[cfg(test)]
mod tests;
