//! An instance's output: two pipes in, two bounded files out.
//!
//! Owns the lines: each gets a time stamp, and a long one is stored in pieces; beyond the rate, lines are counted
//! instead of stored. An app that floods its log costs a bounded share of disk and processor, and is never blocked for
//! good.
//!
//! A record in a file: microseconds since 1970, a space, `o`, `e` or `s` (stdout, stderr, the shim's own messages), a
//! space, the line. A record that begins with `+` is a piece: its line goes on in the next record of its stream. Readers
//! of versions without pieces take the sign for a part of the number.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::pipe2,
};

use crate::{
    machine::now_us,
    protocol::{LOG_CURRENT, LOG_FILE_BYTES, LOG_PREVIOUS},
};

/// The most bytes of a record. A longer line is stored in pieces of this length.
const RECORD_BYTES: usize = 8 << 10;

/// The bytes read at a time. The buffer is nearly all of a shim's memory.
const READ_BYTES: usize = 16 << 10;

/// The bytes that may be stored each second in the long run.
const RATE_BYTES: u64 = 1 << 20;

/// The bytes that may be stored at once, after a quiet time.
const BURST_BYTES: u64 = 4 << 20;

/// The time after which a line without an end (a prompt, a progress dot) is stored as a piece.
const HALF_LINE_AFTER: Duration = Duration::from_millis(40);

/// The time after which the number of dropped lines is stored, if there is room.
const TELL_DROPPED_AFTER: Duration = Duration::from_secs(1);

/// The pause between two reads of a flood, so that it doesn't cost a whole processor.
const FLOOD_PAUSE: Duration = Duration::from_millis(1);

/// The bytes of room at which a flood is over. The number of dropped lines is then stored.
const TELL_WITH_ROOM: u64 = 64 << 10;

/// The ends of the pipes that the instance writes to.
pub struct Ends {
    /// The stdout.
    pub out: OwnedFd,
    /// The stderr.
    pub err: OwnedFd,
}

/// The reason why an instance's output can't be stored.
#[derive(Debug, thiserror::Error)]
#[error("can't keep its output in {}", folder.display())]
pub struct OutputError {
    folder: PathBuf,
    source: io::Error,
}

/// Reads an instance's output and stores it.
pub struct Output {
    streams: [Stream; 2],
    log: Log,
    buffer: Box<[u8]>,
}

struct Stream {
    /// None once the stream has ended.
    pipe: Option<File>,
    lines: Lines,
}

impl Output {
    /// Opens the files in `folder`, and the pipes.
    ///
    /// # Errors
    /// [`OutputError`].
    pub fn open(folder: &Path) -> Result<(Output, Ends), OutputError> {
        let failed = |source| OutputError { folder: folder.to_owned(), source };
        let log = Log::open(folder.to_owned(), Instant::now()).map_err(failed)?;
        let pipe = || -> io::Result<(File, OwnedFd)> {
            let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
            // The app's end blocks like any other pipe.
            fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            Ok((read.into(), write))
        };
        let ((out, out_end), (err, err_end)) = (pipe().map_err(failed)?, pipe().map_err(failed)?);
        let stream = |pipe, mark| Stream { pipe: Some(pipe), lines: Lines::new(mark) };
        let streams = [stream(out, b'o'), stream(err, b'e')];
        let output = Output { streams, log, buffer: vec![0; READ_BYTES].into_boxed_slice() };
        Ok((output, Ends { out: out_end, err: err_end }))
    }

    /// Returns the open pipes, to poll for input.
    pub fn open_ends(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.streams.iter().filter_map(|stream| stream.pipe.as_ref().map(AsFd::as_fd))
    }

    /// Reads a piece of each stream. Returns true if there was any.
    pub fn read(&mut self) -> bool {
        let mut any = false;
        for stream in &mut self.streams {
            let Some(pipe) = &mut stream.pipe else { continue };
            match pipe.read(&mut self.buffer) {
                Ok(0) => stream.pipe = None,
                Ok(n) => {
                    any = true;
                    stream.lines.take(&self.buffer[..n], now_us(), &mut self.log);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => stream.pipe = None,
            }
        }
        if self.log.flush(Instant::now()) {
            std::thread::sleep(FLOOD_PAUSE);
        }
        any
    }

    /// Reads all that is left, after the last process has gone.
    pub fn drain(&mut self) {
        // A pipe holds 64 KiB unless enlarged. The bound keeps another process that holds an end open from delaying
        // the shim.
        for _ in 0..256 {
            if !self.read() {
                break;
            }
        }
    }

    /// Stores a message of the shim itself.
    pub fn say(&mut self, what: &str) {
        self.log.keep(Record { at_us: now_us(), mark: b's', goes_on: false }, what.as_bytes(), true);
        self.log.flush(Instant::now());
    }

    /// Does the work that has become due.
    pub fn tick(&mut self) {
        for stream in &mut self.streams {
            stream.lines.show_half(Instant::now(), now_us(), &mut self.log);
        }
        if self.log.room > TELL_WITH_ROOM {
            self.log.tell_dropped(now_us());
        }
        self.log.flush(Instant::now());
    }

    /// Returns the time until [`Output::tick`] has work to do.
    pub fn next_look(&self) -> Option<Duration> {
        let halves = self.streams.iter().filter_map(|stream| stream.lines.half_since);
        let half =
            halves.min().map(|since| (since + HALF_LINE_AFTER).saturating_duration_since(Instant::now()));
        // The number of dropped lines is stored when there is room again.
        half.into_iter().chain((self.log.dropped > 0).then_some(TELL_DROPPED_AFTER)).min()
    }

    /// Stores the last half lines and the number of dropped lines.
    pub fn finish(&mut self) {
        for stream in &mut self.streams {
            stream.lines.end(now_us(), &mut self.log);
        }
        self.log.tell_dropped(now_us());
        self.log.flush(Instant::now());
    }
}

/// Splits a stream into lines, and long or slow lines into pieces.
struct Lines {
    mark: u8,
    /// The part of the last line that is not stored yet.
    half: Vec<u8>,
    /// The time at which that part began; none if there is none, or if it is the beginning of one letter.
    half_since: Option<Instant>,
    /// True if a piece of the last line is stored.
    is_begun: bool,
    /// True while the rest of a line is skipped, because a piece of it was dropped.
    skipping: bool,
}

impl Lines {
    fn new(mark: u8) -> Self {
        Lines { mark, half: Vec::new(), half_since: None, is_begun: false, skipping: false }
    }

    fn take(&mut self, mut bytes: &[u8], at_us: u64, log: &mut Log) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            if self.half.is_empty() && !self.skipping && line.len() <= RECORD_BYTES {
                self.store(at_us, line, false, log);
            } else {
                self.hold(line, at_us, log);
                let last = std::mem::take(&mut self.half);
                self.store(at_us, &last, false, log);
            }
            self.half_since = None;
        }
        self.hold(bytes, at_us, log);
    }

    /// Appends to the half line, and stores each whole piece of it.
    fn hold(&mut self, mut bytes: &[u8], at_us: u64, log: &mut Log) {
        if bytes.is_empty() || self.skipping {
            return;
        }
        loop {
            let room = RECORD_BYTES - self.half.len();
            let (fits, rest) = bytes.split_at(bytes.len().min(room));
            self.half.extend_from_slice(fits);
            if rest.is_empty() {
                break;
            }
            self.store_piece(at_us, log);
            bytes = rest;
        }
        self.half_since.get_or_insert_with(Instant::now);
    }

    /// Stores the whole letters of the half line as a piece.
    fn store_piece(&mut self, at_us: u64, log: &mut Log) {
        let mut piece = std::mem::take(&mut self.half);
        let rest = piece.split_off(whole_letters(&piece));
        if !piece.is_empty() {
            self.store(at_us, &piece, true, log);
        }
        self.half = if self.skipping { Vec::new() } else { rest };
        self.half_since = None;
    }

    /// Stores a record. Of a line that lost a piece, nothing more is stored.
    fn store(&mut self, at_us: u64, line: &[u8], goes_on: bool, log: &mut Log) {
        let is_kept = self.skipping || log.keep(Record { at_us, mark: self.mark, goes_on }, line, false);
        self.skipping = goes_on && (self.skipping || !is_kept);
        self.is_begun = goes_on;
    }

    fn end(&mut self, at_us: u64, log: &mut Log) {
        let last = std::mem::take(&mut self.half);
        self.half_since = None;
        if !last.is_empty() || self.is_begun {
            self.store(at_us, &last, false, log);
        }
    }

    fn show_half(&mut self, now: Instant, at_us: u64, log: &mut Log) {
        if self.half_since.is_some_and(|since| now >= since + HALF_LINE_AFTER) {
            self.store_piece(at_us, log);
        }
    }
}

/// Returns the length of a text without the beginning of a UTF-8 letter at its end.
fn whole_letters(text: &[u8]) -> usize {
    let length = text.len();
    for back in 1..=length.min(3) {
        let needed = match text[length - back] {
            // A byte within a letter.
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if needed > back { length - back } else { length };
    }
    length
}

/// The fields that are stored beside a line.
#[derive(Clone, Copy)]
struct Record {
    /// Microseconds since 1970.
    at_us: u64,
    /// The letter of the stream.
    mark: u8,
    /// True for a piece of a line that goes on.
    goes_on: bool,
}

/// The two files.
struct Log {
    folder: PathBuf,
    file: File,
    size: u64,
    pending: Vec<u8>,
    /// The bytes that may be stored now.
    room: u64,
    refilled: Instant,
    dropped: u64,
    flooded: bool,
}

impl Log {
    fn open(folder: PathBuf, now: Instant) -> io::Result<Log> {
        let file = open_current(&folder)?;
        let size = file.metadata()?.len();
        let pending = Vec::new();
        Ok(Log { folder, file, size, pending, room: BURST_BYTES, refilled: now, dropped: 0, flooded: false })
    }

    /// Stores a record if there is room, or `always`. Returns whether it was stored.
    fn keep(&mut self, record: Record, line: &[u8], always: bool) -> bool {
        let Record { at_us, mark, goes_on } = record;
        let cost = line.len() as u64 + 20;
        // After a dropped line, more room is needed before the next line is stored, so that dropped lines are counted
        // together.
        let enough = if self.dropped > 0 { TELL_WITH_ROOM } else { cost };
        if !always && self.room < enough {
            self.dropped += 1;
            self.flooded = true;
            return false;
        }
        if self.dropped > 0 && !always {
            self.tell_dropped(at_us);
        }
        self.room = self.room.saturating_sub(cost);
        let sign = if goes_on { "+" } else { "" };
        let _ = write!(self.pending, "{sign}{at_us} {} ", mark as char);
        self.pending.extend_from_slice(line);
        self.pending.push(b'\n');
        true
    }

    /// Stores the number of dropped lines. `at_us` is no later than the next record's, so that readers, which sort by
    /// time, see it in this place.
    fn tell_dropped(&mut self, at_us: u64) {
        if self.dropped > 0 {
            let lines = if self.dropped == 1 { "line" } else { "lines" };
            let words = format!("{} {lines} dropped: more than 1 MiB a second", self.dropped);
            self.dropped = 0;
            self.keep(Record { at_us, mark: b's', goes_on: false }, words.as_bytes(), true);
        }
    }

    /// Writes the pending lines. Returns true if lines had to be dropped.
    fn flush(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.refilled);
        let refill =
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX).saturating_mul(RATE_BYTES) / 1_000_000;
        if refill > 0 {
            self.room = self.room.saturating_add(refill).min(BURST_BYTES);
            self.refilled = now;
        }
        if !self.pending.is_empty() {
            if self.size + self.pending.len() as u64 > LOG_FILE_BYTES && self.size > 0 {
                self.rotate();
            }
            // A full disk costs the output, not the instance.
            if self.file.write_all(&self.pending).is_ok() {
                self.size += self.pending.len() as u64;
            }
            self.pending.clear();
            self.pending.shrink_to(2 * READ_BYTES);
        }
        std::mem::take(&mut self.flooded)
    }

    fn rotate(&mut self) {
        let _ = fs::rename(self.folder.join(LOG_CURRENT), self.folder.join(LOG_PREVIOUS));
        if let Ok(file) = open_current(&self.folder) {
            self.file = file;
            self.size = 0;
        }
    }
}

fn open_current(folder: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(folder.join(LOG_CURRENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(folder: &Path) -> Log {
        Log::open(folder.to_owned(), Instant::now()).expect("the folder can be written")
    }

    fn kept(folder: &Path) -> Vec<String> {
        let text = fs::read_to_string(folder.join(LOG_CURRENT)).expect("it was written");
        let words = |line: &str| {
            let (stamp, words) = line.split_once(' ').expect("it is stamped");
            format!("{}{words}", if stamp.starts_with('+') { "+" } else { "" })
        };
        text.lines().map(words).collect()
    }

    #[test]
    fn lines_are_kept_whole_however_they_arrive() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut log = log(folder.path());
        let mut lines = Lines::new(b'o');
        for piece in ["one\ntw", "o\n", "\nthree"] {
            lines.take(piece.as_bytes(), 1, &mut log);
        }
        lines.end(1, &mut log);
        log.flush(Instant::now());
        assert_eq!(kept(folder.path()), ["o one", "o two", "o ", "o three"]);
    }

    #[test]
    fn a_long_line_is_stored_in_pieces_of_whole_letters_and_the_next_is_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut log = log(folder.path());
        let mut lines = Lines::new(b'e');
        let long = "x".repeat(RECORD_BYTES - 1) + &"é".repeat(RECORD_BYTES);
        for piece in format!("{long}\nnext\n{}\n", "y".repeat(RECORD_BYTES)).as_bytes().chunks(5_001) {
            lines.take(piece, 1, &mut log);
        }
        log.flush(Instant::now());
        let kept = kept(folder.path());
        let shapes: Vec<(&str, usize)> = kept
            .iter()
            .map(|line| line.split_once(' ').expect("a mark"))
            .map(|(mark, line)| (mark, line.len()))
            .collect();
        let rest = long.len() - (RECORD_BYTES - 1) - RECORD_BYTES;
        assert_eq!(
            shapes,
            [("+e", RECORD_BYTES - 1), ("+e", RECORD_BYTES), ("e", rest), ("e", 4), ("e", RECORD_BYTES)]
        );
        let joined: String = kept[..3].iter().map(|line| line.split_once(' ').expect("a mark").1).collect();
        assert!(joined == long);
    }

    #[test]
    fn a_prompt_is_stored_soon_and_its_answer_ends_the_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut log = log(folder.path());
        let mut lines = Lines::new(b'o');
        let later = || Instant::now() + HALF_LINE_AFTER;
        lines.take(b"name? \xc3", 1, &mut log);
        lines.show_half(Instant::now(), 1, &mut log);
        log.flush(Instant::now());
        assert!(kept(folder.path()).is_empty(), "it may go on at once");
        for _ in 0..2 {
            lines.show_half(later(), 1, &mut log);
        }
        assert!(lines.half_since.is_none(), "nobody waits for half a letter");
        lines.take(b"\xa9\n\nlast", 1, &mut log);
        lines.show_half(later(), 1, &mut log);
        lines.end(1, &mut log);
        log.flush(Instant::now());
        assert_eq!(kept(folder.path()), ["+o name? ", "o é", "o ", "+o last", "o "]);
    }

    #[test]
    fn letters_are_whole_and_bytes_that_are_none_stay() {
        for (text, whole) in [
            (&b""[..], 0),
            (b"ab", 2),
            (b"a\xc3", 1),
            (b"a\xc3\xa9", 3),
            (b"a\xe2\x82", 1),
            (b"a\xf0\x9f\x98", 1),
            (b"\xf0\x9f\x98\x80", 4),
            (b"\x80\x80\x80\x80", 4),
            (b"a\xff", 2),
        ] {
            assert_eq!(whole_letters(text), whole, "{text:?}");
        }
    }

    #[test]
    fn of_a_line_that_lost_a_piece_nothing_more_is_stored() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut log = log(folder.path());
        let mut lines = Lines::new(b'o');
        lines.take(&vec![b'x'; RECORD_BYTES + 1], 1, &mut log);
        log.room = 0;
        lines.take(&vec![b'x'; 2 * RECORD_BYTES], 1, &mut log);
        log.room = BURST_BYTES;
        lines.take(b"xx\nnext\n", 2, &mut log);
        log.flush(Instant::now());
        let kept = kept(folder.path());
        assert_eq!(kept[1..], ["s 1 line dropped: more than 1 MiB a second", "o next"]);
        assert!(kept[0].starts_with("+o x"));
    }

    #[test]
    fn a_flood_is_counted_and_takes_two_files_at_most() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut log = log(folder.path());
        let mut lines = Lines::new(b'o');
        let mut now = Instant::now();
        for _ in 0..20_000 {
            lines.take(&[&[b'x'; 1_000][..], b"\n"].concat(), 1, &mut log);
            now += Duration::from_micros(200);
            log.flush(now);
        }
        log.tell_dropped(1);
        log.flush(now);
        let told: Vec<u64> = kept(folder.path())
            .iter()
            .filter_map(|line| line.strip_prefix("s ")?.split(' ').next()?.parse().ok())
            .collect();
        let lines = kept(folder.path()).len() as u64;
        let dropped = told.iter().sum::<u64>();
        assert!(dropped > 2 * lines, "four of five are too many; {dropped} dropped beside {lines}");
        assert!(told.len() < 100, "it is told together: {told:?}");
        for file in [LOG_CURRENT, LOG_PREVIOUS] {
            let size = fs::metadata(folder.path().join(file)).expect("it is there").len();
            assert!(size <= LOG_FILE_BYTES, "{file} has {size} bytes");
        }
        assert_eq!(fs::read_dir(folder.path()).expect("it is there").count(), 2);
    }
}
