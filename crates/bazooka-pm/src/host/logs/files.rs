//! The files of an instance's output, as its shim writes them.
//!
//! Owns the position of a reader in the two files, across rotations and the move of an ended instance's folder. A
//! position names the file itself, not its path, so that no line is lost or read twice while the files are still there.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    time::UNIX_EPOCH,
};

use bazooka_sandbox::protocol::{LOG_CURRENT, LOG_PREVIOUS};
use visor::names::InstanceId;

use crate::host::folders::{Folders, LOG};

/// The bytes read at a time, backwards from the end.
const PIECE: u64 = 64 << 10;

/// A file by its inode and the nanosecond of its creation: the inode of a removed file is used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId {
    inode: u64,
    born_ns: u64,
}

/// A position in an instance's output: all before it has been read. The default is the beginning of what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The file.
    pub file: FileId,
    /// The bytes of it that have been read, to the end of a line.
    pub offset: u64,
}

/// The position in the output of each instance.
pub type Cursors = BTreeMap<InstanceId, Cursor>;

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Microseconds since 1970.
    pub at_us: i64,
    /// `out`, `err` or `sys`.
    pub stream: &'static str,
    /// The line, without its end.
    pub line: String,
    /// True for a piece of a line that goes on in the next record of its stream.
    pub goes_on: bool,
}

/// An open file of an instance's output.
pub struct LogFile {
    /// The file's identity.
    pub id: FileId,
    /// The length of the file when it was opened.
    pub length: u64,
    /// The file.
    pub file: fs::File,
}

/// The lines of a read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Portion {
    /// The lines, in order.
    pub lines: Vec<Kept>,
    /// The position after them.
    pub end: Cursor,
    /// True if there are more.
    pub is_more: bool,
}

/// Opens an instance's files, the older one first.
pub fn files(folders: &Folders, id: InstanceId) -> Vec<LogFile> {
    let (current, previous) = (open(folders, id, LOG_CURRENT), open(folders, id, LOG_PREVIOUS));
    match (previous, current) {
        // A rotation between the two looks.
        (Some(previous), Some(current)) if previous.id == current.id => vec![current],
        (previous, current) => previous.into_iter().chain(current).collect(),
    }
}

fn open(folders: &Folders, id: InstanceId, name: &str) -> Option<LogFile> {
    // An ended instance's folder moves from the first place to the second, never back.
    let opened = [folders.instances(), folders.ended()]
        .into_iter()
        .find_map(|parent| fs::File::open(parent.join(id.to_string()).join(LOG).join(name)).ok())?;
    LogFile::of(opened).ok()
}

impl LogFile {
    fn of(file: fs::File) -> io::Result<LogFile> {
        let meta = file.metadata()?;
        // Where the file system doesn't keep it, the inode alone must do.
        let born = meta.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let born_ns = born.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0));
        Ok(LogFile { id: FileId { inode: meta.ino(), born_ns }, length: meta.len(), file })
    }

    /// Returns the complete lines from `begin` on, below `limit`, and the end of the last one.
    fn lines(&mut self, begin: u64, limit: u64) -> (Vec<Kept>, u64) {
        let most = limit.saturating_sub(begin);
        let mut bytes = Vec::with_capacity(usize::try_from(most).unwrap_or(0));
        let sought = self.file.seek(SeekFrom::Start(begin));
        if sought.and_then(|_| self.file.by_ref().take(most).read_to_end(&mut bytes)).is_err() {
            return (Vec::new(), begin);
        }
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let kept = bytes[..end].split(|byte| *byte == b'\n').filter_map(parse).collect();
        (kept, begin + end as u64)
    }

    /// Returns where the last `lines` lines below `limit` begin. The pieces of a line count as one.
    pub fn begin_of_last(&mut self, limit: u64, lines: usize) -> io::Result<u64> {
        let (mut begin, mut seen) = (limit, 0);
        // Where the record begins that was read last, and the first byte of it.
        let mut after: Option<u64> = None;
        let mut first = None;
        let mut piece = Vec::new();
        while begin > 0 {
            let end = begin;
            begin = begin.saturating_sub(PIECE);
            piece.clear();
            self.file.seek(SeekFrom::Start(begin))?;
            self.file.by_ref().take(end - begin).read_to_end(&mut piece)?;
            for (at, byte) in piece.iter().enumerate().rev() {
                if *byte == b'\n' {
                    let record = begin + at as u64 + 1;
                    // Bytes after the last line's end are no line yet. A piece is a part of the line after it.
                    let is_line = after.is_some() && first != Some(b'+');
                    match after {
                        Some(after) if is_line && seen == lines => return Ok(after),
                        None if lines == 0 => return Ok(record),
                        _ => {}
                    }
                    seen += usize::from(is_line);
                    after = Some(record);
                }
                first = Some(*byte);
            }
        }
        // The file's first record.
        Ok(after.filter(|_| seen == lines && first != Some(b'+')).unwrap_or(0))
    }

    /// Returns the position after the last complete line.
    fn end(&mut self) -> Cursor {
        let offset = self.begin_of_last(self.length, 0).unwrap_or(0);
        Cursor { file: self.id, offset }
    }
}

/// Returns the position after the last line of each instance's output.
pub fn ends(folders: &Folders, ids: impl IntoIterator<Item = InstanceId>) -> Cursors {
    let end = |id| files(folders, id).last_mut().map(LogFile::end).unwrap_or_default();
    ids.into_iter().map(|id| (id, end(id))).collect()
}

/// Reads on from a position: at most `most` bytes, and not beyond `upto`.
///
/// A position in a file that has gone counts as the beginning of what is there: that is newer.
pub fn read_on(folders: &Folders, id: InstanceId, from: Cursor, upto: Option<Cursor>, most: u64) -> Portion {
    let mut files = files(folders, id);
    let place = |wanted: FileId| files.iter().position(|file| file.id == wanted);
    let begin = place(from.file).unwrap_or(0);
    match upto.map(|upto| (upto, place(upto.file))) {
        Some((_, Some(last))) => files.truncate(last + 1),
        // All of it has gone.
        Some((upto, None)) => return Portion { end: upto, ..Portion::default() },
        None => {}
    }
    let (last, mut left) = (files.len(), most);
    let mut portion = Portion { end: from, ..Portion::default() };
    for (at, file) in files.iter_mut().enumerate().skip(begin) {
        let offset = if file.id == from.file { from.offset } else { 0 };
        let limit = upto.filter(|_| at + 1 == last).map_or(file.length, |upto| upto.offset);
        let wanted = limit.saturating_sub(offset);
        let (lines, mut end) = file.lines(offset, offset + wanted.min(left));
        portion.is_more = wanted > left;
        if portion.is_more && end == offset && left == most {
            // No line is as long; what it is must not hold the reader for ever.
            end = offset + left;
        }
        left -= (end - offset).min(left);
        portion.lines.extend(lines);
        portion.end = Cursor { file: file.id, offset: end };
        if portion.is_more {
            break;
        }
    }
    portion
}

/// Parses a line of a file.
pub fn parse(line: &[u8]) -> Option<Kept> {
    let (at_us, stream, words) = split(line)?;
    let line_text = String::from_utf8_lossy(words).into_owned();
    Some(Kept { at_us, stream, line: line_text, goes_on: is_piece(line) })
}

/// Reports whether a record is a piece of a line that goes on.
pub fn is_piece(record: &[u8]) -> bool {
    record.first() == Some(&b'+')
}

/// Returns the stamp, the stream and the words of a line.
pub fn split(line: &[u8]) -> Option<(i64, &'static str, &[u8])> {
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let at_us = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let stream = match words.next()? {
        b"o" => "out",
        b"e" => "err",
        b"s" => "sys",
        _ => return None,
    };
    Some((at_us, stream, words.next()?))
}

#[cfg(test)]
pub mod tests {
    use std::path::PathBuf;

    use super::*;

    /// An instance's folder of output.
    pub struct Place {
        pub folders: Folders,
        pub folder: PathBuf,
        _dir: tempfile::TempDir,
    }

    /// The instance.
    pub const ID: InstanceId = InstanceId(7);

    impl Place {
        pub fn new() -> Place {
            let dir = tempfile::tempdir().expect("a folder");
            let folders = Folders::create(dir.path()).expect("there is room");
            let place = Place { folder: folders.log(ID), folders, _dir: dir };
            fs::create_dir_all(&place.folder).expect("there is room");
            place
        }

        pub fn write(&self, name: &str, text: &str) {
            fs::write(self.folder.join(name), text).expect("it can be written");
        }

        pub fn append(&self, text: &str) {
            let current = self.folder.join(LOG_CURRENT);
            let mut file = fs::File::options().create(true).append(true).open(current).expect("it opens");
            io::Write::write_all(&mut file, text.as_bytes()).expect("it can be written");
        }

        /// As a shim rotates.
        pub fn rotate(&self) {
            let (current, previous) = (self.folder.join(LOG_CURRENT), self.folder.join(LOG_PREVIOUS));
            fs::rename(&current, previous).expect("it can be moved");
            self.append("");
        }

        pub fn read(&self, from: Cursor, upto: Option<Cursor>, most: u64) -> (Vec<String>, Cursor, bool) {
            let read = read_on(&self.folders, ID, from, upto, most);
            (read.lines.into_iter().map(|kept| kept.line).collect(), read.end, read.is_more)
        }

        pub fn end(&self) -> Cursor {
            ends(&self.folders, [ID])[&ID]
        }
    }

    const MUCH: u64 = 1 << 20;

    #[test]
    fn what_is_followed_goes_on_in_the_next_file_and_half_a_line_is_not_a_line_yet() {
        let place = Place::new();
        place.append("1 o one\n2 e tw");
        let at = place.end();
        assert_eq!(at.offset, 8);
        place.append("o\n3 o three\n");
        place.rotate();
        place.append("4 s four\n5 o fi");
        let (lines, at, is_more) = place.read(at, None, MUCH);
        assert_eq!((lines, is_more), (vec!["two".into(), "three".into(), "four".to_owned()], false));
        place.append("ve\n");
        let (lines, at, _) = place.read(at, None, MUCH);
        assert_eq!(lines, ["five"]);
        assert_eq!(place.read(at, None, MUCH), (Vec::new(), at, false));
    }

    #[test]
    fn the_pieces_of_a_line_count_as_one() {
        let place = Place::new();
        place.append("1 o one\n+2 o tw\n+3 e th\n4 o o\n5 e ree\n6 o four\n");
        let mut file = files(&place.folders, ID).remove(0);
        let mut begins = |lines| file.begin_of_last(file.length, lines).expect("it can be read");
        let at = [0, 1, 2, 3, 4, 5, 9].map(&mut begins);
        assert_eq!(at, [47, 38, 30, 8, 0, 0, 0]);
        let (lines, ..) = place.read(Cursor::default(), None, MUCH);
        assert_eq!(lines, ["one", "tw", "th", "o", "ree", "four"]);
        let kept = read_on(&place.folders, ID, Cursor::default(), None, MUCH).lines;
        assert_eq!(
            kept.iter().map(|kept| kept.goes_on).collect::<Vec<_>>(),
            [false, true, true, false, false, false]
        );
    }

    #[test]
    fn who_falls_behind_by_two_files_goes_on_with_what_is_there() {
        let place = Place::new();
        place.append("1 o one\n");
        let at = place.end();
        for n in 2..=4 {
            place.append(&format!("{n} o lost or kept {n}\n"));
            place.rotate();
        }
        place.append("5 o five\n");
        // The file that was read has gone; its inode may be that of a newer one.
        assert_eq!(place.read(at, None, MUCH).0, ["lost or kept 4", "five"]);
    }

    #[test]
    fn an_ended_instance_is_read_to_its_end_where_its_folder_has_moved() {
        let place = Place::new();
        place.append("1 o one\n");
        let at = place.end();
        place.append("2 o two\n");
        let ended = place.folders.ended().join(ID.to_string());
        fs::rename(place.folders.instance(ID), ended).expect("it can be moved");
        assert_eq!(place.read(at, None, MUCH).0, ["two"]);
    }

    #[test]
    fn a_read_ends_where_it_is_told_to() {
        let place = Place::new();
        place.append("1 o one\n");
        let begin = Cursor::default();
        let first = place.end();
        place.append("2 o two\n");
        place.rotate();
        place.append("3 o three\n");
        let last = place.end();
        place.append("4 o four\n");
        assert_eq!(place.read(begin, Some(first), MUCH), (vec!["one".into()], first, false));
        assert_eq!(place.read(first, Some(last), MUCH), (vec!["two".into(), "three".into()], last, false));
        assert_eq!(place.read(last, Some(last), MUCH), (Vec::new(), last, false));
        place.rotate();
        place.rotate();
        assert_eq!(place.read(first, Some(last), MUCH), (Vec::new(), last, false), "it has gone");
    }

    #[test]
    fn much_is_read_in_portions_without_a_loss_and_no_line_is_too_long() {
        let place = Place::new();
        let text = |from: u32| (from..from + 600).map(|n| format!("{n} o {n:01000}\n")).collect::<String>();
        place.append(&text(0));
        place.rotate();
        place.append(&text(600));
        let (mut at, mut found) = (Cursor::default(), Vec::new());
        loop {
            let portion = read_on(&place.folders, ID, at, None, 100 << 10);
            assert!(portion.lines.len() <= 102, "{}", portion.lines.len());
            at = portion.end;
            found.extend(portion.lines.into_iter().map(|kept| kept.at_us));
            if !portion.is_more {
                break;
            }
        }
        assert_eq!(found, (0..1_200).collect::<Vec<i64>>());
        // No shim writes such a line.
        place.append(&format!("{}\n1201 o end\n", "x".repeat(300 << 10)));
        let mut seen = Vec::new();
        for _ in 0..10 {
            let (lines, end, is_more) = place.read(at, None, 100 << 10);
            at = end;
            seen.extend(lines);
            if !is_more {
                break;
            }
        }
        assert_eq!(seen, ["end"]);
    }
}
