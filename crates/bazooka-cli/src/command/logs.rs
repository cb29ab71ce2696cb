//! `bazooka logs`: the output of an app's instances, merged over hosts by time.
//!
//! Owns what is asked of hosts, the order of lines, and their look. Each host's bazooka-pm stores the output of its own instances; all hosts are asked at once. For a host that
//! doesn't answer, the command prints a notice and shows the other hosts' lines.

mod fields;
mod pieces;

use std::{collections::BTreeMap, time::Duration};

use bazooka_daemon::http_client;
use futures::{StreamExt, future::join_all};
use jiff::Timestamp;
use owo_colors::{AnsiColors, OwoColorize};
use serde::Deserialize;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep},
};
use tokio_util::{
    codec::{FramedRead, LinesCodec, LinesCodecError},
    io::StreamReader,
};
use visor::{
    keys,
    mirror::Mirror,
    names::{AppName, HostName, InstanceId, ProcName},
    pause::Doubling,
    pause::until,
    snapshot::Snapshot,
    terminal,
    visor::Refusal,
};

use crate::{
    command::CommandKind,
    context::{Context, known_proc},
    failure::{Failure, Kind, Result},
    rm::chain,
    show::{Sink, clean, put, say},
};
use fields::{Condition, fields};
use pieces::Pieces;

/// Show what the app's instances write
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print new lines as they are written
    #[arg(short, long)]
    pub follow: bool,
    /// How many earlier lines
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=i64::from(MOST_LINES)))]
    pub lines: u32,
    /// Only lines of this proc
    #[arg(short, long, value_parser = ProcName::of_spelling)]
    pub proc: Option<ProcName>,
    /// Print the time of each line
    #[arg(short, long)]
    pub timestamps: bool,
    /// Only lines of this instance
    #[arg(short, long, value_name = "ID")]
    pub instance: Option<InstanceId>,
    /// Only lines with this field, for example level=error: of lines that are JSON or key=value pairs
    #[arg(long = "where", value_name = "KEY=VALUE")]
    pub conditions: Vec<Condition>,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        if self.follow { CommandKind::Follows } else { CommandKind::Shows }
    }

    /// Returns how many earlier lines each host is asked for.
    fn asked(&self) -> u32 {
        match (self.lines, self.conditions.is_empty()) {
            (0, _) => 0,
            (lines, true) => lines,
            // The last lines that meet the conditions may be any of them.
            (_, false) => MOST_LINES,
        }
    }
}

/// The time that a host may take to begin its answer before it is left out.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The time that a line is held back for earlier lines of other hosts.
const HOLD: Duration = Duration::from_millis(50);

/// The same while there is one host alone: long enough for the rest of a line whose pieces arrive together.
const ONE_HOST_HOLD: Duration = Duration::from_millis(5);

/// The pause after which the earlier lines count as complete. Each host sends its earlier lines without a break.
const BACKLOG_QUIET: Duration = Duration::from_millis(150);

/// The most earlier lines. No host gives more.
const MOST_LINES: u32 = 10_000;

/// The size limit of a record, in bytes. Hosts store a line in pieces that are far shorter.
const MOST_LINE_BYTES: usize = 1 << 20;

/// The pause before a host is asked again.
const PAUSE: Doubling = Doubling::new(Duration::from_millis(250), Duration::from_secs(5));

/// A line of an instance's output, or a message of its host about it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Entry {
    at: Timestamp,
    proc: ProcName,
    instance: InstanceId,
    /// `out`, `err`, or `sys` for the host's messages.
    stream: String,
    line: String,
    /// True if the line goes on in the next record of its instance and stream.
    #[serde(default)]
    partial: bool,
    /// The record as received.
    #[serde(skip)]
    raw: String,
    /// True if it was put together from several records.
    #[serde(skip)]
    is_joined: bool,
}

impl Entry {
    fn read(raw: String) -> Option<Entry> {
        let mut entry: Entry = serde_json::from_str(&raw).ok()?;
        entry.raw = raw;
        Some(entry)
    }

    /// Returns it as JSON, with the fields of a structured line. Fields of the record that this build doesn't know stay.
    fn json(&self) -> String {
        let fields = (self.stream != "sys").then(|| fields(&self.line)).flatten();
        if !self.is_joined && fields.is_none() {
            return self.raw.clone();
        }
        let mut record: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&self.raw).expect("it was read from this");
        record.insert("line".to_owned(), self.line.as_str().into());
        record.remove("partial");
        if self.partial {
            record.insert("partial".to_owned(), true.into());
        }
        record.extend(fields.map(|fields| ("fields".to_owned(), fields.into())));
        serde_json::Value::Object(record).to_string()
    }

    fn meets(&self, conditions: &[Condition]) -> bool {
        conditions.is_empty()
            || self.stream != "sys"
                && fields(&self.line).is_some_and(|fields| conditions.iter().all(|one| one.is_met(&fields)))
    }
}

/// Shows the lines; with `-f` until the user interrupts it.
///
/// # Errors
/// Unknown names; no host that answers.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    let app = context.app().await?;
    let more = vec![keys::hosts(), keys::history_of(&app)];
    let (view, around) = context.view_with(&app, more).await?;
    context.theirs(&app).await?;
    if let Some(proc) = &args.proc {
        known_proc(&app, &view, proc)?;
    }
    let only = match args.instance {
        None => None,
        Some(id) => {
            let ended = view.history.iter().find(|((_, ended), _)| *ended == id);
            let host = view.instances.get(&id).map(|instance| &instance.host);
            let host = host.or(ended.map(|(_, ended)| &ended.instance.host));
            Some(host.cloned().ok_or(Refusal::NoSuchInstance(app.clone(), id))?)
        }
    };
    let hosts = hosts(&around, only.as_ref());
    if hosts.is_empty() && !args.follow {
        return Err(Failure::new(Kind::PartMissing, "no host that could have the lines is there"));
    }
    let query = Query { app, args };
    let look = Look::new(context.json, query.args.timestamps);
    if query.args.follow {
        follow(context, query, only, look).await
    } else {
        once(context, &query, hosts, &look).await
    }
}

/// Returns the endpoint of each host.
fn hosts(around: &Snapshot, only: Option<&HostName>) -> BTreeMap<HostName, String> {
    let there = around.hosts.iter().filter_map(|(name, view)| Some((name, view.host.as_ref()?)));
    there
        .filter(|(name, _)| only.is_none_or(|only| only == *name))
        .map(|(name, host)| (name.clone(), host.url.trim_end_matches('/').to_owned()))
        .collect()
}

/// A request for lines.
struct Query {
    app: AppName,
    args: Args,
}

impl Query {
    fn url(&self, base: &str, lines: u32, follow: bool) -> String {
        // Names and numbers need no escaping.
        let mut url = format!("{base}/logs?app={}&n={lines}&follow={follow}", self.app);
        if let Some(proc) = &self.args.proc {
            url.push_str(&format!("&proc={proc}"));
        }
        if let Some(id) = self.args.instance {
            url.push_str(&format!("&instance={id}"));
        }
        url
    }
}

fn client(context: &Context) -> Result<reqwest::Client> {
    let client = http_client(context.credentials.as_ref()).connect_timeout(CONNECT_TIMEOUT).build();
    client.map_err(|error| Failure::from_error(Kind::Failed, "no HTTP client can be made", &error))
}

/// The reason why a host's lines can't be read.
#[derive(Debug, thiserror::Error)]
enum Unread {
    /// The host doesn't answer.
    #[error("no answer")]
    NoAnswer,
    /// The host refused it, and says why.
    #[error("{0}")]
    Refused(String),
    /// The request failed.
    #[error("{}", chain(.0))]
    Http(#[from] reqwest::Error),
    /// The answer contains an invalid line.
    #[error(transparent)]
    Line(#[from] LinesCodecError),
}

/// Returns a host's lines as they arrive.
async fn lines(
    client: &reqwest::Client,
    url: &str,
) -> Result<impl futures::Stream<Item = Result<String, Unread>> + Unpin, Unread> {
    let asked = tokio::time::timeout(CONNECT_TIMEOUT, client.get(url).send()).await;
    let answer = asked.map_err(|_| Unread::NoAnswer)??;
    if let Err(status) = answer.error_for_status_ref() {
        let words = tokio::time::timeout(CONNECT_TIMEOUT, answer.text()).await;
        let words = words.map_err(|_| Unread::NoAnswer)??;
        let said = words.lines().next().filter(|line| !line.is_empty());
        return Err(said.map_or(Unread::Http(status), |said| Unread::Refused(clean(said).to_string())));
    }
    let body = Box::pin(answer.bytes_stream().map(|piece| piece.map_err(std::io::Error::other)));
    let lines = FramedRead::new(StreamReader::new(body), LinesCodec::new_with_max_length(MOST_LINE_BYTES));
    Ok(lines.map(|line| line.map_err(Unread::from)))
}

async fn once(
    context: &Context,
    query: &Query,
    hosts: BTreeMap<HostName, String>,
    look: &Look,
) -> Result<()> {
    let client = client(context)?;
    let ask = |(name, base): (HostName, String)| {
        let (client, url) = (client.clone(), query.url(&base, query.args.asked(), false));
        async move {
            let read = async {
                let mut lines = lines(&client, &url).await?;
                let (mut entries, mut pieces) = (Vec::new(), Pieces::default());
                while let Some(line) = lines.next().await {
                    entries.extend(Entry::read(line?).into_iter().flat_map(|entry| pieces.take(entry)));
                }
                entries.extend(pieces.rest());
                entries.retain(|entry| entry.meets(&query.args.conditions));
                Ok::<_, Unread>(entries)
            };
            (name, read.await)
        }
    };
    let mut entries = Vec::new();
    let mut failures = Vec::new();
    for (name, read) in join_all(hosts.into_iter().map(ask)).await {
        match read {
            Ok(of_host) => entries.extend(of_host),
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    put(&look.render(&latest(entries, query.args.lines as usize)));
    if failures.is_empty() {
        return Ok(());
    }
    let mut failure = Failure::new(Kind::PartMissing, "some hosts' lines are missing");
    failure.causes = failures;
    Err(failure)
}

/// Returns the last lines of all hosts by time. Lines with equal times stay in their host's order.
fn latest(mut entries: Vec<Entry>, most: usize) -> Vec<Entry> {
    entries.sort_by_key(|entry| entry.at);
    entries.split_off(entries.len().saturating_sub(most))
}

async fn follow(context: &Context, query: Query, only: Option<HostName>, look: Look) -> Result<()> {
    let query = std::sync::Arc::new(query);
    let client = client(context)?;
    let (send, mut receive) = mpsc::channel(1_000);
    let mut mirror = Mirror::new(context.visor.store().clone(), vec![keys::hosts()], Snapshot::default());
    let mut following: BTreeMap<HostName, (String, AbortHandle)> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let mut held: Vec<Entry> = Vec::new();
    let mut pieces = Pieces::default();
    // The earlier lines are shown first, like without `-f`.
    let mut is_backlog = true;
    let mut flush_at: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = mirror.next() => {
                if !mirror.is_synced() {
                    continue;
                }
                let hosts = hosts(mirror.image(), only.as_ref());
                following.retain(|name, (url, task)| {
                    let stays = hosts.get(name) == Some(url);
                    if !stays {
                        task.abort();
                    }
                    stays
                });
                for (name, url) in hosts {
                    following.entry(name.clone()).or_insert_with(|| {
                        let host = FollowHost { name, url: url.clone(), query: query.clone(), client: client.clone() };
                        (url, tasks.spawn(host.run(send.clone(), is_backlog)))
                    });
                }
            }
            Some(ended) = tasks.join_next() => match ended {
                Err(error) if error.is_panic() => {
                    return Err(Failure::from_error(Kind::Failed, "a host's lines can't be followed any more", &error));
                }
                // The task was aborted, because its host has gone or has another endpoint.
                Ok(()) | Err(_) => {}
            },
            Some(entry) = receive.recv() => {
                held.extend(pieces.take(entry));
                let now = Instant::now();
                flush_at = match flush_at {
                    Some(at) if !is_backlog => Some(at),
                    _ if is_backlog => Some(now + BACKLOG_QUIET),
                    // One host's lines are in order.
                    _ => Some(now + if following.len() > 1 { HOLD } else { ONE_HOST_HOLD }),
                };
            }
            () = until(flush_at) => {
                let most = if is_backlog { query.args.lines as usize } else { usize::MAX };
                held.extend(pieces.slow());
                held.retain(|entry| entry.meets(&query.args.conditions));
                put(&look.render(&latest(std::mem::take(&mut held), most)));
                flush_at = None;
                is_backlog = false;
            }
        }
    }
}

/// A host whose lines are followed.
struct FollowHost {
    name: HostName,
    url: String,
    query: std::sync::Arc<Query>,
    client: reqwest::Client,
}

impl FollowHost {
    /// Sends the host's lines for ever. After a broken connection it continues after the last line sent.
    async fn run(self, send: mpsc::Sender<Entry>, mut with_backlog: bool) {
        let mut last: Option<Timestamp> = None;
        let mut pauses = PAUSE.begin();
        let mut said = false;
        loop {
            let before = match last {
                Some(_) => 1_000,
                None if with_backlog => self.query.args.asked(),
                None => 0,
            };
            with_backlog = false;
            match lines(&self.client, &self.query.url(&self.url, before, true)).await {
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        say(&format!("{}'s lines are out of reach; trying again: {error}", self.name));
                    }
                }
                Ok(mut lines) => {
                    said = false;
                    pauses.reset();
                    let resumed_at = last;
                    while let Some(Ok(line)) = lines.next().await {
                        let Some(entry) = Entry::read(line) else { continue };
                        if resumed_at.is_some_and(|sent| entry.at <= sent) {
                            continue;
                        }
                        last = last.max(Some(entry.at));
                        if send.send(entry).await.is_err() {
                            return;
                        }
                    }
                }
            }
            sleep(pauses.next()).await;
        }
    }
}

/// The format of lines.
struct Look {
    json: bool,
    timestamps: bool,
    sink: Sink,
    colours: bool,
}

/// Colours that are easy to distinguish, and readable on light and dark backgrounds.
const COLOURS: [AnsiColors; 6] = [
    AnsiColors::Cyan,
    AnsiColors::Yellow,
    AnsiColors::Green,
    AnsiColors::Magenta,
    AnsiColors::Blue,
    AnsiColors::BrightCyan,
];

impl Look {
    fn new(json: bool, timestamps: bool) -> Self {
        let sink = Sink::stdout();
        Look { json, timestamps, sink, colours: sink.has_colours() }
    }

    fn render(&self, entries: &[Entry]) -> String {
        entries.iter().map(|entry| self.line(entry) + "\n").collect()
    }

    fn line(&self, entry: &Entry) -> String {
        if self.json {
            return entry.json();
        }
        let mut prefix = format!("{}.{} ", entry.proc, entry.instance);
        if self.timestamps {
            // Three decimals, so that all times have the same width.
            prefix = format!("{:.3} {prefix}", entry.at);
        }
        let own = entry.stream == "sys";
        prefix.push(if own { '*' } else { '|' });
        let line = match self.sink {
            Sink::Terminal if self.colours => terminal::coloured(&entry.line),
            Sink::Terminal => clean(&entry.line),
            Sink::Pipe => terminal::plain(&entry.line),
        };
        if !self.colours {
            return format!("{prefix} {line}");
        }
        let colour = COLOURS[usize::try_from(entry.instance.0).unwrap_or(0) % COLOURS.len()];
        if own {
            format!("{} {}", prefix.color(colour), line.dimmed())
        } else {
            format!("{} {line}", prefix.color(colour))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(second: i64, id: u64, stream: &str, line: &str) -> Entry {
        let at = Timestamp::from_second(second).expect("a time");
        let raw = serde_json::json!({
            "at": at, "app": "a", "proc": "web", "instance": id.to_string(), "stream": stream, "line": line,
        });
        Entry::read(raw.to_string()).expect("what bazooka-pm writes")
    }

    fn look(json: bool, sink: Sink, colours: bool) -> Look {
        Look { json, timestamps: false, sink, colours }
    }

    #[test]
    fn lines_of_several_hosts_are_merged_in_the_order_of_time() {
        let entries = vec![
            entry(1, 1, "out", "a"),
            entry(3, 1, "out", "c"),
            entry(3, 1, "out", "d"),
            entry(2, 2, "out", "b"),
            entry(4, 2, "err", "e"),
        ];
        let text = look(false, Sink::Pipe, false).render(&latest(entries.clone(), 4));
        assert_eq!(text, "web.2 | b\nweb.1 | c\nweb.1 | d\nweb.2 | e\n");
        assert_eq!(latest(entries, 0), []);
    }

    #[test]
    fn a_line_cannot_write_to_the_terminal_by_itself() {
        let entry = entry(1, 12, "out", "\u{1b}]0;title\u{7}red\u{1b}[31m");
        assert_eq!(look(false, Sink::Terminal, false).line(&entry), "web.12 | red");
        assert_eq!(look(false, Sink::Pipe, false).line(&entry), "web.12 | red");
        assert!(!look(true, Sink::Terminal, false).line(&entry).contains('\u{1b}'), "JSON escapes it");
        let coloured = look(false, Sink::Terminal, true).line(&entry);
        assert_eq!(coloured, "\u{1b}[36mweb.12 |\u{1b}[39m red\u{1b}[31m\u{1b}[0m");
    }

    #[test]
    fn json_has_the_fields_of_a_structured_line_and_whole_lines() {
        let json = |entry: Entry| -> serde_json::Value {
            serde_json::from_str(&look(true, Sink::Pipe, false).line(&entry)).expect("JSON")
        };
        assert_eq!(json(entry(1, 1, "out", r#"{"level":"info"}"#))["fields"]["level"], "info");
        assert_eq!(json(entry(1, 1, "err", "level=info msg=x"))["fields"]["msg"], "x");
        assert_eq!(json(entry(1, 1, "sys", "a=1 b=2")).get("fields"), None);
        let mut piece = entry(1, 1, "out", r#"{"level":"#);
        piece.partial = true;
        let mut pieces = Pieces::default();
        assert!(pieces.take(piece).is_empty());
        let whole = pieces.take(entry(2, 1, "out", r#""warn"}"#)).remove(0);
        assert!(whole.meets(&["level=warn".parse().expect("valid")]));
        let whole = json(whole);
        assert_eq!(
            (&whole["line"], &whole["fields"]["level"]),
            (&r#"{"level":"warn"}"#.into(), &"warn".into())
        );
        assert_eq!(whole.get("partial"), None);
    }

    #[test]
    fn the_hosts_own_words_are_told_from_output() {
        let line = look(false, Sink::Pipe, false).line(&entry(1, 12, "sys", "exited with status 1"));
        assert_eq!(line, "web.12 * exited with status 1");
    }
}
