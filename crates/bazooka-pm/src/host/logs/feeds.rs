//! New output for those who follow it: read once, whoever many follow.
//!
//! Owns the one loop that reads new output. Followers who ask for the same share a *feed*: its batches are read, merged
//! by time and rendered once. A feed holds a few batches for followers who are a little late. One who is later is told
//! so; it reads on by itself, from its last batch to the feed's present position, and joins the feed again there. So
//! nothing is lost or doubled while the files are there, and nobody waits for a slow follower.
//!
//! ```text
//! news (inotify) ─▶ look: new lines of the instances that wrote ─▶ a batch for each feed ─▶ followers
//! outputs (watch) ─▶ instances come into feeds and leave them          └ late: read_on, join again
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use axum::body::Bytes;
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time::Instant,
};
use visor::{
    names::{AppName, InstanceId, ProcName},
    pause::until,
};

use super::{
    Asked,
    files::{Cursor, Cursors, Kept, ends, read_on},
    news::News,
    outputs::{Outputs, Table},
    render,
};
use crate::host::{folders::Folders, pools::Pool};

/// The shortest time between two looks at what was written.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The time for which a look waits after the first news, so that lines of one moment are merged.
const GATHER: Duration = Duration::from_millis(20);

/// The bytes that a look reads of all instances together.
const BYTES_PER_LOOK: u64 = 1 << 20;

/// The least and the most bytes that a look reads of an instance: more than a line, and more than an instance may store
/// in that time.
const BYTES_OF_ONE: (u64, u64) = (16 << 10, 256 << 10);

/// The batches that a feed holds for late followers.
const BATCHES: usize = 4;

/// The followers that may wait to join.
const JOINS: usize = 64;

/// New output.
#[derive(Debug)]
pub struct Batch {
    /// The rendered lines.
    pub pieces: Vec<Bytes>,
    /// The position after them.
    pub end: Arc<Cursors>,
}

/// A follower's place in a feed.
#[derive(Debug)]
pub struct Joined {
    /// The position from which on the batches go.
    pub at: Arc<Cursors>,
    /// The batches.
    pub batches: broadcast::Receiver<Arc<Batch>>,
}

type Join = (Asked, oneshot::Sender<Joined>);

/// The way into the feeds. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Feeds(mpsc::Sender<Join>);

/// The loop that reads new output.
pub struct Feeder {
    folders: Folders,
    pool: Pool,
    outputs: Outputs,
    table: watch::Receiver<Table>,
    joins: mpsc::Receiver<Join>,
    feeds: BTreeMap<Asked, Feed>,
    news: News,
    /// Instances of which more is to be read, whatever the news.
    unread: BTreeSet<InstanceId>,
    looked: Instant,
    look_at: Option<Instant>,
}

struct Feed {
    sources: BTreeMap<InstanceId, (ProcName, Cursor)>,
    batches: broadcast::Sender<Arc<Batch>>,
}

impl Feeds {
    /// Creates the feeds over the output of this host, and their loop.
    pub fn create(folders: Folders, pool: Pool, outputs: Outputs) -> (Feeds, Feeder) {
        let (send, joins) = mpsc::channel(JOINS);
        let table = outputs.watch();
        let (feeds, news, unread) = Default::default();
        let (looked, look_at) = (Instant::now(), None);
        (Feeds(send), Feeder { folders, pool, outputs, table, joins, feeds, news, unread, looked, look_at })
    }

    /// Joins the feed of what is asked for; none if the loop has ended.
    pub async fn join(&self, asked: &Asked) -> Option<Joined> {
        let (answer, joined) = oneshot::channel();
        self.0.send((asked.clone(), answer)).await.ok()?;
        joined.await.ok()
    }
}

impl Feeder {
    /// Reads new output for ever.
    pub async fn run(mut self) {
        loop {
            self.drop_feeds();
            let (is_followed, look_at) = (!self.feeds.is_empty(), self.look_at);
            tokio::select! {
                biased;
                () = until(look_at) => self.look().await,
                Some((asked, answer)) = self.joins.recv() => self.join(asked, answer).await,
                Ok(()) = self.table.changed(), if is_followed => self.take_up_outputs(),
                () = self.news.arrived(), if look_at.is_none() => {
                    let soon = (Instant::now() + GATHER).max(self.looked + LOOK_EVERY);
                    self.look_at = Some(soon);
                }
            }
        }
    }

    async fn join(&mut self, asked: Asked, answer: oneshot::Sender<Joined>) {
        if !self.feeds.contains_key(&asked) {
            self.take_up_outputs();
            let procs = self.outputs.asked(&asked);
            // The watches come first: what is written after the look at the ends is news.
            self.watch(procs.keys().copied());
            let (folders, ids) = (self.folders.clone(), procs.keys().copied().collect::<Vec<_>>());
            let Ok(mut ends) = self.pool.run(move || ends(&folders, ids)).await else { return };
            let sources =
                procs.into_iter().map(|(id, proc)| (id, (proc, ends.remove(&id).unwrap_or_default())));
            let feed = Feed { sources: sources.collect(), batches: broadcast::Sender::new(BATCHES) };
            self.feeds.insert(asked.clone(), feed);
        }
        let feed = &self.feeds[&asked];
        // A follower that has gone meanwhile leaves its feed at once.
        let _ = answer.send(Joined { at: feed.position(), batches: feed.batches.subscribe() });
    }

    /// Takes instances into the feeds that want them, from the beginning of their output on, and those out of them
    /// whose output has gone.
    fn take_up_outputs(&mut self) {
        let table = self.table.borrow_and_update();
        for (asked, feed) in &mut self.feeds {
            feed.sources.retain(|id, _| table.contains_key(id));
            for (id, owner) in table.iter().filter(|(id, owner)| asked.is_of(**id, owner)) {
                if !feed.sources.contains_key(id) {
                    feed.sources.insert(*id, (owner.proc.clone(), Cursor::default()));
                    self.unread.insert(*id);
                }
            }
        }
        drop(table);
        self.watch([]);
        if !self.unread.is_empty() && self.look_at.is_none() {
            self.look_at = Some((Instant::now() + GATHER).max(self.looked + LOOK_EVERY));
        }
    }

    /// Watches the instances of all feeds, and these.
    fn watch(&mut self, also: impl IntoIterator<Item = InstanceId>) {
        let mut wanted: BTreeSet<InstanceId> = also.into_iter().collect();
        wanted.extend(self.feeds.values().flat_map(|feed| feed.sources.keys()));
        let folders = &self.folders;
        self.news.watch(&wanted, |id| Some(folders.log(id)).filter(|folder| folder.is_dir()));
        if self.news.is_blind() && self.look_at.is_none() {
            self.look_at = Some(self.looked + LOOK_EVERY);
        }
    }

    /// Drops the feeds that nobody follows any more.
    fn drop_feeds(&mut self) {
        let before = self.feeds.len();
        self.feeds.retain(|_, feed| feed.batches.receiver_count() > 0);
        if self.feeds.len() < before {
            self.watch([]);
        }
        if self.feeds.is_empty() {
            (self.unread, self.look_at) = Default::default();
        }
    }

    /// Reads what was written, and gives it to the followers.
    async fn look(&mut self) {
        let mut wrote = self.news.take();
        wrote.append(&mut self.unread);
        let of_one = BYTES_PER_LOOK / (wrote.len() as u64).max(1);
        let of_one = of_one.clamp(BYTES_OF_ONE.0, BYTES_OF_ONE.1);
        let reads: Vec<Read> =
            self.feeds.iter().filter_map(|(asked, feed)| feed.read(asked, &wrote)).collect();
        let folders = self.folders.clone();
        let read = self.pool.run(move || {
            let read = reads.into_iter().map(|read| read.carried_out(&folders, of_one));
            read.collect::<Vec<_>>()
        });
        // A panic ends this loop, and with it the daemon.
        for found in read.await.expect("reading does not panic") {
            self.unread.extend(found.more);
            if let Some(feed) = self.feeds.get_mut(&found.asked) {
                feed.take_up(found.ends, found.pieces);
            }
        }
        self.looked = Instant::now();
        self.look_at = match (self.unread.is_empty(), self.news.is_blind()) {
            (false, _) => Some(self.looked),
            (true, true) => Some(self.looked + LOOK_EVERY),
            (true, false) => None,
        };
    }
}

impl Feed {
    fn position(&self) -> Arc<Cursors> {
        Arc::new(self.sources.iter().map(|(id, (_, cursor))| (*id, *cursor)).collect())
    }

    /// Returns what is to be read of the instances that wrote; none if none of them is in this feed.
    fn read(&self, asked: &Asked, wrote: &BTreeSet<InstanceId>) -> Option<Read> {
        let own = self.sources.iter().filter(|(id, _)| wrote.contains(id));
        let sources: Vec<_> = own.map(|(id, (proc, cursor))| (*id, proc.clone(), *cursor)).collect();
        (!sources.is_empty()).then(|| Read { asked: asked.clone(), sources })
    }

    fn take_up(&mut self, ends: Vec<(InstanceId, Cursor)>, pieces: Vec<Bytes>) {
        for (id, end) in ends {
            if let Some((_, cursor)) = self.sources.get_mut(&id) {
                *cursor = end;
            }
        }
        if !pieces.is_empty() {
            // Without followers the feed goes soon.
            let _ = self.batches.send(Arc::new(Batch { pieces, end: self.position() }));
        }
    }
}

/// A feed's part of a look.
struct Read {
    asked: Asked,
    sources: Vec<(InstanceId, ProcName, Cursor)>,
}

struct Found {
    asked: Asked,
    pieces: Vec<Bytes>,
    ends: Vec<(InstanceId, Cursor)>,
    /// The instances of which there is more.
    more: Vec<InstanceId>,
}

impl Read {
    /// Reads at most so many bytes of each instance. Blocks.
    fn carried_out(self, folders: &Folders, of_one: u64) -> Found {
        let (mut lines, mut ends, mut more) = (Vec::new(), Vec::new(), Vec::new());
        for (id, _, cursor) in &self.sources {
            let portion = read_on(folders, *id, *cursor, None, of_one);
            lines.extend(portion.lines.into_iter().map(|kept| (*id, kept)));
            ends.push((*id, portion.end));
            more.extend(portion.is_more.then_some(*id));
        }
        let procs = self.sources.into_iter().map(|(id, proc, _)| (id, proc)).collect();
        Found { pieces: merged(&self.asked.app, &procs, lines), asked: self.asked, ends, more }
    }
}

/// Reads from one position to another, a portion at a time; returns the rendered lines, the position after them, and
/// whether there is more. Blocks.
pub fn catch_up(
    folders: &Folders,
    app: &AppName,
    procs: &BTreeMap<InstanceId, ProcName>,
    mut at: Cursors,
    upto: &Cursors,
) -> (Vec<Bytes>, Cursors, bool) {
    let open: Vec<_> = upto.iter().filter(|(id, upto)| at.get(id) != Some(upto)).collect();
    let of_one = (BYTES_OF_ONE.1 / (open.len() as u64).max(1)).max(BYTES_OF_ONE.0);
    let (mut lines, mut is_more) = (Vec::new(), false);
    for (id, upto) in open {
        let from = at.get(id).copied().unwrap_or_default();
        let portion = read_on(folders, *id, from, Some(*upto), of_one);
        lines.extend(portion.lines.into_iter().map(|kept| (*id, kept)));
        at.insert(*id, portion.end);
        is_more |= portion.is_more;
    }
    (merged(app, procs, lines), at, is_more)
}

fn merged(
    app: &AppName,
    procs: &BTreeMap<InstanceId, ProcName>,
    mut lines: Vec<(InstanceId, Kept)>,
) -> Vec<Bytes> {
    lines.sort_by_key(|(_, kept)| kept.at_us);
    render(app, procs, &lines)
}

#[cfg(test)]
mod tests;
