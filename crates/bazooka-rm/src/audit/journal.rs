//! The audit's journal: a file of this rm's own that follows the audit's rows and keeps what the rows lose.
//!
//! Owns the files below `audit/` in the state folder. Each line is a JSON object ([`Line`]): an entry as it was written, or
//! the deletion of one. Lines are only added. Once the files exceed the operator's bound, the oldest goes. Whoever deletes
//! rows of the coordinator changes no line.
//!
//! ```text
//! rows ─list, watch─▶ [Rows] ─▶ lines not there yet ─▶ audit/000000000007.jsonl ─full─▶ audit/000000000008.jsonl
//! ```
//!
//! After a restart it reads its own lines, and a list of the rows shows which are missing. A line that a crash tore is cut
//! off, and written again if its row still exists. What was both written and deleted while this rm was down is not seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufRead, BufReader, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::sleep};
use visor::{
    identity::Identity,
    keys::{self, Key},
    mirror::{Image, Mirror},
    names::AppName,
    pause::Doubling,
    schema::AuditEntry,
    store::{Entry, Revision, SharedStore},
};

use crate::sources::Sources;

/// The number of files that share the bound. The oldest goes as a whole.
const FILES: u64 = 8;

/// The pause before a failed write is tried again, such as on a full disk.
const AGAIN: Doubling = Doubling::new(Duration::from_secs(1), Duration::from_secs(60));

/// The number of new entries after which the rows are trimmed sooner than usual.
const MANY: usize = 500;

/// The most bytes of a value that is no entry which a line shows.
const UNREADABLE_SHOWN: usize = 200;

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    /// The first line of each file.
    Opened {
        /// The newest revision in earlier files.
        after: Revision,
    },
    /// An entry was written.
    Entry {
        /// The key.
        key: String,
        /// The revision of the write.
        revision: Revision,
        /// The time, by its writer's clock.
        at: Timestamp,
        /// The name that acted.
        who: String,
        /// The identity that wrote it.
        written_by: Identity,
        /// The origin of the request.
        from: String,
        /// The app that it concerned.
        app: Option<AppName>,
        /// The action.
        what: String,
        /// `read` or `refused`, where nothing was changed.
        #[serde(skip_serializing_if = "Option::is_none")]
        kind: Option<String>,
    },
    /// A row was written that is no entry.
    Unreadable {
        /// The key.
        key: String,
        /// The revision of the write.
        revision: Revision,
        /// The beginning of its value.
        value: String,
    },
    /// A row was deleted, by anyone.
    Deleted {
        /// The key.
        key: String,
        /// The revision of the deletion. None where only its absence was seen.
        revision: Option<Revision>,
        /// The time at which this rm saw it.
        seen: Timestamp,
    },
}

impl Line {
    fn of(entry: &Entry, written_by: Identity) -> Line {
        match serde_json::from_slice::<AuditEntry>(&entry.value).map(AuditEntry::bounded) {
            Ok(AuditEntry { what, app, by, from, kind, at, .. }) => Line::Entry {
                key: entry.key.clone(),
                revision: entry.mod_revision,
                at,
                who: by.unwrap_or_else(|| written_by.to_string()),
                written_by,
                from,
                app,
                what,
                kind,
            },
            Err(_) => {
                let shown = entry.value.len().min(UNREADABLE_SHOWN);
                Line::Unreadable {
                    key: entry.key.clone(),
                    revision: entry.mod_revision,
                    value: String::from_utf8_lossy(&entry.value[..shown]).into_owned(),
                }
            }
        }
    }
}

/// The changes of the rows, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Happened {
    /// A complete list follows.
    Listed,
    Put(Entry),
    Deleted(String, Revision),
}

/// Collects what the rows go through. A journal needs each step, not the image that results.
#[derive(Default)]
struct Rows(Mutex<Vec<Happened>>);

impl Rows {
    fn add(&self, happened: Happened) {
        self.0.lock().expect("no holder of this lock panics").push(happened);
    }

    fn take(&self) -> Vec<Happened> {
        std::mem::take(&mut self.0.lock().expect("no holder of this lock panics"))
    }
}

impl Image for Rows {
    fn fresh(&self) -> Rows {
        Rows(Mutex::new(vec![Happened::Listed]))
    }

    fn put(&mut self, entry: &Entry) {
        self.add(Happened::Put(entry.clone()));
    }

    fn delete(&mut self, key: &str, revision: Revision) {
        self.add(Happened::Deleted(key.to_owned(), revision));
    }

    fn set_revision(&mut self, _: Revision) {}
}

/// The open journal.
struct Journal {
    folder: PathBuf,
    most_bytes: u64,
    /// The newest file, its number and its size.
    file: File,
    number: u64,
    bytes: u64,
    /// The rows that exist by the lines, with the revision of their last line.
    present: BTreeMap<String, Revision>,
    /// Rows up to this revision may have their lines in a file that is gone.
    forgotten: Revision,
    /// The newest revision of a line.
    newest: Revision,
}

impl Journal {
    /// Opens the journal in a folder, which is made if it isn't there. A torn last line is cut off.
    fn open(folder: &Path, most_bytes: u64) -> io::Result<Journal> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let numbers = numbers(folder)?;
        let number = numbers.last().copied().unwrap_or(1);
        let path = path(folder, number);
        let mut file = File::options().create(true).read(true).append(true).mode(0o600).open(path)?;
        cut_torn_line(&mut file)?;
        let bytes = file.metadata()?.len();
        let mut journal = Journal {
            folder: folder.to_owned(),
            most_bytes,
            file,
            number,
            bytes,
            present: BTreeMap::new(),
            forgotten: 0,
            newest: 0,
        };
        for (at, number) in numbers.iter().enumerate() {
            journal.read(*number, at == 0)?;
        }
        if journal.bytes == 0 {
            journal.append(&Line::Opened { after: journal.newest })?;
        }
        Ok(journal)
    }

    fn read(&mut self, number: u64, is_first: bool) -> io::Result<()> {
        for line in BufReader::new(File::open(path(&self.folder, number))?).lines() {
            match serde_json::from_str(&line?) {
                Ok(Line::Opened { after }) if is_first => self.forgotten = after,
                Ok(line) => self.learn(&line),
                Err(error) => {
                    tracing::warn!(file = number, error = %error, "a line of the audit's journal can't be read");
                }
            }
        }
        Ok(())
    }

    fn learn(&mut self, line: &Line) {
        match line {
            Line::Opened { after } => self.newest = self.newest.max(*after),
            Line::Entry { key, revision, .. } | Line::Unreadable { key, revision, .. } => {
                self.present.insert(key.clone(), *revision);
                self.newest = self.newest.max(*revision);
            }
            Line::Deleted { key, revision, .. } => {
                self.present.remove(key);
                self.newest = self.newest.max(revision.unwrap_or(0));
            }
        }
    }

    /// Adds what happened, as far as no line has it yet, and makes it durable. Returns the number of entries among it.
    fn record(&mut self, happened: Vec<Happened>, now: Timestamp) -> io::Result<usize> {
        let lines = self.lines(happened, now);
        if lines.is_empty() {
            return Ok(0);
        }
        for line in &lines {
            if self.bytes > self.most_bytes / FILES {
                self.rotate()?;
            }
            self.append(line)?;
            self.learn(line);
        }
        self.file.sync_data()?;
        Ok(lines.iter().filter(|line| !matches!(line, Line::Deleted { .. })).count())
    }

    /// Returns the lines that are missing.
    fn lines(&self, happened: Vec<Happened>, now: Timestamp) -> Vec<Line> {
        let mut lines = Vec::new();
        let (mut listed, mut is_list) = (BTreeMap::new(), false);
        for happened in happened {
            match happened {
                Happened::Listed => (listed, is_list) = (BTreeMap::new(), true),
                // A list comes in the order of keys; lines are in the order of revisions.
                Happened::Put(entry) if is_list => {
                    drop(listed.insert((entry.mod_revision, entry.key.clone()), entry))
                }
                Happened::Put(entry) => lines.extend(self.line(&entry)),
                Happened::Deleted(key, revision) if is_audit(&key) => {
                    lines.push(Line::Deleted { key, revision: Some(revision), seen: now });
                }
                Happened::Deleted(..) => {}
            }
        }
        if is_list {
            let there: BTreeSet<&str> = listed.keys().map(|(_, key)| key.as_str()).collect();
            let gone = self.present.keys().filter(|key| !there.contains(key.as_str()));
            let gone = gone.map(|key| Line::Deleted { key: key.clone(), revision: None, seen: now });
            lines.extend(gone);
            lines.extend(listed.values().filter_map(|entry| self.line(entry)));
        }
        lines
    }

    /// Returns a row's line, unless it has one.
    fn line(&self, entry: &Entry) -> Option<Line> {
        let Ok(Key::Audit(who, _)) = entry.key.parse::<Key>() else { return None };
        match self.present.get(&entry.key) {
            Some(revision) if *revision == entry.mod_revision => None,
            None if entry.mod_revision <= self.forgotten => None,
            _ => Some(Line::of(entry, who)),
        }
    }

    fn append(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.file.write_all(&text)?;
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// Begins a new file, and removes the oldest ones that exceed the bound.
    fn rotate(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.number += 1;
        let path = path(&self.folder, self.number);
        self.file = File::options().create(true).read(true).append(true).mode(0o600).open(path)?;
        self.bytes = 0;
        self.append(&Line::Opened { after: self.newest })?;
        File::open(&self.folder)?.sync_all()?;
        let numbers = numbers(&self.folder)?;
        let over = numbers.len().saturating_sub(usize::try_from(FILES).expect("a handful"));
        for number in &numbers[..over] {
            fs::remove_file(self::path(&self.folder, *number))?;
            tracing::info!(
                file = number,
                "the oldest file of the audit's journal is gone: the journal is full"
            );
        }
        Ok(())
    }
}

fn is_audit(key: &str) -> bool {
    matches!(key.parse(), Ok(Key::Audit(..)))
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:012}.jsonl"))
}

/// Returns the numbers of the files, in order.
fn numbers(folder: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for file in fs::read_dir(folder)? {
        let name = file?.file_name();
        let number: Option<u64> = name.to_str().and_then(|name| name.strip_suffix(".jsonl")?.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Cuts off what follows the last line end: a crash, or a full disk, was in the way of the rest.
fn cut_torn_line(file: &mut File) -> io::Result<()> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(0))?;
    let mut whole = 0;
    let mut reader = BufReader::new(&*file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        if line.ends_with(b"\n") {
            whole += line.len() as u64;
        }
        line.clear();
    }
    if whole < length {
        tracing::warn!(bytes = length - whole, "the audit's journal ends in a torn line, which is cut off");
        file.set_len(whole)?;
    }
    Ok(())
}

/// The journal of one rm, and what keeps it.
pub struct JournalKeeper {
    /// The coordinator.
    pub store: SharedStore,
    /// The folder of the files.
    pub folder: PathBuf,
    /// The bound of all files together, in bytes.
    pub most_bytes: u64,
    /// The time of day.
    pub sources: Sources,
    /// Is told when there are many new entries.
    pub many: Arc<Notify>,
}

impl JournalKeeper {
    /// Follows the rows, without end.
    pub async fn run(self) {
        let mut pauses = AGAIN.begin();
        loop {
            let Err(error) = self.follow(&mut pauses).await;
            let folder = self.folder.display();
            tracing::error!(error = %error, %folder, "the audit's journal can't be written; trying again");
            sleep(pauses.next()).await;
        }
    }

    async fn follow(&self, pauses: &mut visor::pause::Pauses) -> io::Result<std::convert::Infallible> {
        let (folder, most_bytes) = (self.folder.clone(), self.most_bytes);
        let mut journal = blocking(move || Journal::open(&folder, most_bytes)).await??;
        // A new list: what a failed write left out shows in it.
        let mut mirror =
            Mirror::new(self.store.clone(), vec![keys::schema(), keys::audit()], Rows::default());
        let mut new = 0;
        loop {
            mirror.next().await;
            let happened = mirror.image().take();
            if happened.is_empty() {
                continue;
            }
            let now = self.sources.now();
            let (kept, recorded) = blocking(move || {
                let recorded = journal.record(happened, now);
                (journal, recorded)
            })
            .await?;
            journal = kept;
            new += recorded?;
            pauses.reset();
            if new >= MANY {
                new = 0;
                self.many.notify_one();
            }
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

#[cfg(test)]
mod tests;
