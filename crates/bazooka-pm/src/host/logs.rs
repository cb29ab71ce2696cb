//! The output of instances over HTTP: `GET /logs`.
//!
//! Owns merging the output of several instances in order of time, and following it. It only reads the files that shims
//! write, those of ended instances too while they are kept. A reader costs memory only for the lines that it asked
//! for.

use std::{
    collections::BTreeMap,
    fs, io,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
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
use bazooka_daemon::{Cluster, refused};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use visor::{
    access::Act,
    identity::Caller,
    names::{AppName, InstanceId, ProcName},
};

use super::{
    folders::{Folders, LOG},
    records::Record,
};
use bazooka_sandbox::protocol::{LOG_CURRENT, LOG_PREVIOUS};

/// The number of lines without a `lines` parameter.
const USUAL_LINES: usize = 100;

/// The most lines from the past.
const MOST_LINES: usize = 10_000;

/// The most bytes of the past held for a reader, however many instances there are: half of what one instance keeps.
const MOST_BYTES: usize = 4 << 20;

/// The number of lines written out at a time.
const LINES_PER_PIECE: usize = 256;

/// The bytes of an instance's output read at a look: twice what it may print until the next look, so that reading
/// keeps up.
const BYTES_PER_LOOK: u64 = 256 << 10;

/// The pause between two looks at followed files.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The number of looks between two searches for new instances.
const LOOKS_PER_SCAN: u32 = 5;

/// The bytes read at a time, backwards from the end.
const PIECE: u64 = 64 << 10;

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

/// A line as it is sent.
#[derive(Serialize)]
struct Line<'a> {
    at: String,
    app: &'a AppName,
    proc: &'a ProcName,
    instance: InstanceId,
    stream: &'static str,
    line: &'a str,
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    at_us: i64,
    stream: &'static str,
    line: String,
}

/// An instance's files, with the position up to which they have been read.
struct Source {
    app: AppName,
    proc: ProcName,
    folder: PathBuf,
    /// The current file at the last look, by inode, and the bytes of it that have been read.
    read: (u64, u64),
}

type Sources = BTreeMap<InstanceId, Source>;

/// Returns the route, over the state folder.
pub fn routes(folders: Folders, cluster: Cluster, shutdown: CancellationToken) -> Router {
    Router::new().route("/logs", get(logs)).with_state((folders, cluster, shutdown))
}

async fn logs(
    State((folders, cluster, shutdown)): State<(Folders, Cluster, CancellationToken)>,
    Extension(caller): Extension<Caller>,
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
    match cluster.may(&caller, Act::App, Some(&query.app)).await {
        Ok(true) => {}
        Ok(false) => return refused(&caller).into_response(),
        Err(error) => {
            return (StatusCode::SERVICE_UNAVAILABLE, format!("can't tell who may: {error}\n"))
                .into_response();
        }
    }
    let app = query.app.clone();
    // Only a few pieces are queued, so that a slow reader slows the reading down.
    let (send, pieces) = mpsc::channel::<io::Result<Bytes>>(4);
    // The response owns this task: it ends as soon as the reader has gone, and its panic ends the response.
    tokio::spawn(async move {
        tokio::select! {
            () = tell(folders, query, send) => {}
            // A following reader would never end.
            () = shutdown.cancelled() => {}
            () = no_longer(&cluster, &caller, &app) => {}
        }
    });
    let kind = [("content-type", "application/x-ndjson")];
    (kind, Body::from_stream(ReceiverStream::new(pieces))).into_response()
}

/// The pause between two checks that a following reader may still see the output.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// Returns once a caller may no longer see an app's output. While the coordinator doesn't answer, the last answer
/// holds.
async fn no_longer(cluster: &Cluster, caller: &Caller, app: &AppName) {
    if *caller == Caller::Anyone {
        return std::future::pending().await;
    }
    loop {
        sleep(ASK_EVERY).await;
        if let Ok(false) = cluster.may(caller, Act::App, Some(app)).await {
            return;
        }
    }
}

/// Sends the past lines and, if the reader follows, new ones. Ends when the reader has gone.
async fn tell(folders: Folders, query: LogQuery, send: mpsc::Sender<io::Result<Bytes>>) {
    let lines = query.n.unwrap_or(USUAL_LINES).min(MOST_LINES);
    let (place, asked) = (folders.clone(), query.clone());
    let begun = tokio::task::spawn_blocking(move || {
        let mut sources = scan(&place, &asked);
        let lines = last_lines(&mut sources, lines);
        (sources, lines)
    });
    let Ok((mut sources, lines)) = begun.await else { return };
    for piece in lines.chunks(LINES_PER_PIECE) {
        if send.send(Ok(render(&sources, piece))).await.is_err() {
            return;
        }
    }
    drop(lines);
    if !query.follow {
        return;
    }
    let mut looks = 0_u32;
    loop {
        tokio::select! {
            () = sleep(LOOK_EVERY) => {}
            () = send.closed() => return,
        }
        looks += 1;
        let (place, asked) = (folders.clone(), query.clone());
        let looked = tokio::task::spawn_blocking(move || {
            if looks % LOOKS_PER_SCAN == 0 {
                for (id, source) in scan(&place, &asked) {
                    match sources.get_mut(&id) {
                        // The instance may have been archived, which moves its folder.
                        Some(known) => known.folder = source.folder,
                        None => drop(sources.insert(id, source)),
                    }
                }
            }
            let lines = new_lines(&mut sources);
            (sources, lines)
        });
        let Ok((looked, lines)) = looked.await else { return };
        sources = looked;
        for piece in lines.chunks(LINES_PER_PIECE) {
            if send.send(Ok(render(&sources, piece))).await.is_err() {
                return;
            }
        }
    }
}

/// Returns the instances whose output is asked for.
fn scan(folders: &Folders, query: &LogQuery) -> Sources {
    let mut sources = Sources::new();
    for parent in [folders.ended(), folders.instances()] {
        for id in Folders::ids(&parent) {
            if query.instance.is_some_and(|wanted| wanted != id) {
                continue;
            }
            let folder = parent.join(id.to_string());
            let Some(Record { local, .. }) = Record::read(&folder) else { continue };
            let (app, proc) = (local.assignment.app, local.assignment.proc);
            if app == query.app && query.proc.as_ref().is_none_or(|wanted| *wanted == proc) {
                sources.insert(id, Source { app, proc, folder: folder.join(LOG), read: (0, 0) });
            }
        }
    }
    sources
}

/// Returns the last lines of all sources, in order. Each source then counts as read to its end.
fn last_lines(sources: &mut Sources, lines: usize) -> Vec<(InstanceId, Kept)> {
    let mut all: Vec<(InstanceId, Kept)> = Vec::new();
    for (id, source) in sources.iter_mut() {
        let current = source.folder.join(LOG_CURRENT);
        let (mut kept, read) = tail(&current, lines);
        source.read = read;
        if kept.len() < lines {
            let (before, _) = tail(&source.folder.join(LOG_PREVIOUS), lines - kept.len());
            kept.splice(0..0, before);
        }
        all.extend(kept.into_iter().map(|line| (*id, line)));
        all.sort_by_key(|(_, line)| line.at_us);
        let mut bytes = 0;
        let enough = all.iter().rev().take(lines).take_while(|(_, kept)| {
            bytes += kept.line.len();
            bytes <= MOST_BYTES
        });
        let surplus = all.len() - enough.count();
        all.drain(..surplus);
    }
    all
}

/// Returns the lines written since the last look, in order.
fn new_lines(sources: &mut Sources) -> Vec<(InstanceId, Kept)> {
    let mut all = Vec::new();
    for (id, source) in sources.iter_mut() {
        let Ok(mut file) = fs::File::open(source.folder.join(LOG_CURRENT)) else { continue };
        let Ok(meta) = file.metadata() else { continue };
        let (inode, read) = source.read;
        if meta.ino() != inode {
            // The file that was being read is the previous one now.
            if let Ok(mut before) = fs::File::open(source.folder.join(LOG_PREVIOUS)) {
                if let Some(meta) = before.metadata().ok().filter(|meta| meta.ino() == inode) {
                    let (lines, read) = read_from(&mut before, read, BYTES_PER_LOOK);
                    let has_more = !lines.is_empty() && read < meta.len();
                    all.extend(lines.into_iter().map(|line| (*id, line)));
                    if has_more {
                        source.read.1 = read;
                        continue;
                    }
                }
            }
            source.read = (meta.ino(), 0);
        }
        let (lines, read) = read_from(&mut file, source.read.1, BYTES_PER_LOOK);
        source.read.1 = read;
        all.extend(lines.into_iter().map(|line| (*id, line)));
    }
    all.sort_by_key(|(_, line)| line.at_us);
    all
}

/// Returns the last lines of a file, with its inode and the end of its last complete line.
fn tail(path: &Path, lines: usize) -> (Vec<Kept>, (u64, u64)) {
    let Ok(mut file) = fs::File::open(path) else { return (Vec::new(), (0, 0)) };
    let Ok(meta) = file.metadata() else { return (Vec::new(), (0, 0)) };
    let mut begin = meta.len();
    let mut seen = 0;
    let mut piece = Vec::new();
    // Read one line more, because the first one may be incomplete.
    while begin > 0 && seen <= lines {
        let end = begin;
        begin = begin.saturating_sub(PIECE);
        piece.clear();
        let read = file.seek(SeekFrom::Start(begin));
        if read.and_then(|_| file.by_ref().take(end - begin).read_to_end(&mut piece)).is_err() {
            return (Vec::new(), (meta.ino(), begin));
        }
        seen += piece.iter().filter(|byte| **byte == b'\n').count();
    }
    let (mut kept, end) = read_from(&mut file, begin, meta.len() - begin);
    if begin > 0 && !kept.is_empty() {
        kept.remove(0);
    }
    let surplus = kept.len().saturating_sub(lines);
    kept.drain(..surplus);
    (kept, (meta.ino(), end))
}

/// Returns the complete lines from a position on, of at most so many bytes, and the end of the last one.
fn read_from(file: &mut fs::File, begin: u64, most: u64) -> (Vec<Kept>, u64) {
    let mut bytes = Vec::with_capacity(usize::try_from(most).unwrap_or(0));
    let sought = file.seek(SeekFrom::Start(begin));
    if sought.and_then(|_| file.by_ref().take(most).read_to_end(&mut bytes)).is_err() {
        return (Vec::new(), begin);
    }
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let kept = bytes[..end].split(|byte| *byte == b'\n').filter_map(parse).collect();
    (kept, begin + end as u64)
}

fn parse(line: &[u8]) -> Option<Kept> {
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let at_us = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let stream = match words.next()? {
        b"o" => "out",
        b"e" => "err",
        b"s" => "sys",
        _ => return None,
    };
    Some(Kept { at_us, stream, line: String::from_utf8_lossy(words.next()?).into_owned() })
}

fn render(sources: &Sources, lines: &[(InstanceId, Kept)]) -> Bytes {
    let mut text = Vec::new();
    for (id, kept) in lines {
        let Some(source) = sources.get(id) else { continue };
        let at = Timestamp::from_microsecond(kept.at_us).unwrap_or_default();
        let line = Line {
            at: format!("{at:.6}"),
            app: &source.app,
            proc: &source.proc,
            instance: *id,
            stream: kept.stream,
            line: &kept.line,
        };
        serde_json::to_writer(&mut text, &line).expect("a line is always valid JSON");
        text.push(b'\n');
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(folder: &Path) -> Sources {
        let (app, proc) = ("a".parse().expect("valid"), "web".parse().expect("valid"));
        let source = Source { app, proc, folder: folder.to_owned(), read: (0, 0) };
        Sources::from([(InstanceId(1), source)])
    }

    fn lines(kept: &[(InstanceId, Kept)]) -> Vec<String> {
        kept.iter().map(|(_, kept)| kept.line.clone()).collect()
    }

    #[test]
    fn a_reader_is_held_no_more_than_a_fixed_amount_however_many_print() {
        let text: String = (0..4_000).map(|n| format!("{n} o {n:01000}\n")).collect();
        let folders: Vec<_> = (0..4).map(|_| tempfile::tempdir().expect("a folder")).collect();
        let mut sources = Sources::new();
        for (id, folder) in (1..).map(InstanceId).zip(&folders) {
            fs::write(folder.path().join(LOG_CURRENT), &text).expect("it can be written");
            sources.insert(id, source(folder.path()).remove(&InstanceId(1)).expect("it is there"));
        }
        let found = last_lines(&mut sources, MOST_LINES);
        assert_eq!(found.len(), MOST_BYTES / 1_000);
        assert_eq!(found.last().map(|(id, kept)| (*id, kept.at_us)), Some((InstanceId(4), 3_999)));
    }

    #[test]
    fn who_reads_slowly_is_told_all_of_it_in_pieces() {
        let folder = tempfile::tempdir().expect("a folder");
        let (current, previous) = (folder.path().join(LOG_CURRENT), folder.path().join(LOG_PREVIOUS));
        fs::write(&current, "").expect("it can be written");
        let mut sources = source(folder.path());
        assert!(last_lines(&mut sources, 10).is_empty());
        let text = |from: u32| (from..from + 600).map(|n| format!("{n} o {n:01000}\n")).collect::<String>();
        fs::write(&current, text(0)).expect("it can be written");
        fs::rename(&current, &previous).expect("it can be moved");
        fs::write(&current, text(600)).expect("it can be written");
        let mut found = Vec::new();
        loop {
            let piece = new_lines(&mut sources);
            let bytes: usize = piece.iter().map(|(_, kept)| kept.line.len()).sum();
            assert!(bytes as u64 <= 2 * BYTES_PER_LOOK, "{bytes}");
            if piece.is_empty() {
                break;
            }
            found.extend(piece.into_iter().map(|(_, kept)| kept.at_us));
        }
        assert_eq!(found, (0..1_200).collect::<Vec<i64>>());
    }

    #[test]
    fn the_last_lines_go_back_into_the_file_before() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join(LOG_PREVIOUS), "1 o one\n2 e two\n").expect("it can be written");
        fs::write(folder.path().join(LOG_CURRENT), "3 s three\n4 o fo").expect("it can be written");
        let mut sources = source(folder.path());
        assert_eq!(lines(&last_lines(&mut sources, 2)), ["two", "three"]);
        fs::write(folder.path().join(LOG_CURRENT), "3 s three\n4 o four\n").expect("it can be written");
        assert_eq!(lines(&new_lines(&mut sources)), ["four"], "half a line is not a line yet");
        assert!(new_lines(&mut sources).is_empty());
    }

    #[test]
    fn what_is_followed_goes_on_in_the_next_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let (current, previous) = (folder.path().join(LOG_CURRENT), folder.path().join(LOG_PREVIOUS));
        fs::write(&current, "1 o one\n").expect("it can be written");
        let mut sources = source(folder.path());
        assert_eq!(lines(&last_lines(&mut sources, 10)), ["one"]);
        fs::write(&current, "1 o one\n2 o two\n").expect("it can be written");
        fs::rename(&current, &previous).expect("it can be moved");
        fs::write(&current, "3 o three\n").expect("it can be written");
        assert_eq!(lines(&new_lines(&mut sources)), ["two", "three"]);
    }

    #[test]
    fn many_lines_are_merged_in_the_order_of_time() {
        let (a, b) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let text = |from: u32| {
            (0..50_000).map(|n| format!("{} o {}\n", n * 2 + from, n * 2 + from)).collect::<String>()
        };
        fs::write(a.path().join(LOG_CURRENT), text(0)).expect("it can be written");
        fs::write(b.path().join(LOG_CURRENT), text(1)).expect("it can be written");
        let mut sources = source(a.path());
        sources.extend(source(b.path()).into_values().map(|source| (InstanceId(2), source)));
        let found = lines(&last_lines(&mut sources, 9_000));
        let expected: Vec<String> = (91_000..100_000).map(|n| n.to_string()).collect();
        assert_eq!(found, expected);
    }
}
