//! The earlier output of instances, merged by time.
//!
//! Owns which lines a reader gets: the last ones of all instances together. A reader holds where the lines stand, not
//! the lines: it reads them piece by piece, as they are taken from it.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Seek, SeekFrom},
    ops::Range,
    os::unix::fs::FileExt,
};

use visor::names::InstanceId;

use super::{
    PIECE_BYTES, PIECE_LINES,
    files::{Cursors, FileId, Kept, LogFile, files, is_piece, parse, split},
};
use crate::host::folders::Folders;

/// The most bytes of the past for a reader, however many instances there are: half of what one instance keeps.
const MOST_BYTES: u64 = 4 << 20;

/// The lines of a reader's past, by where they stand.
#[derive(Debug, Default)]
pub struct Past {
    sources: Vec<(InstanceId, FileId)>,
    places: Vec<Place>,
}

/// The place of a line: 24 bytes, for a line of up to 8 KiB.
#[derive(Clone, Copy, Debug)]
struct Place {
    at_us: i64,
    /// The index of its file.
    source: u32,
    offset: u32,
    length: u32,
    /// True for a piece of a line that goes on.
    goes_on: bool,
}

impl Past {
    /// Finds the last lines before these positions, in order. Blocks.
    pub fn find(folders: &Folders, upto: &Cursors, lines: usize) -> Past {
        let mut past = Past::default();
        if lines == 0 {
            return past;
        }
        for (id, upto) in upto {
            let mut files = files(folders, *id);
            let Some(last) = files.iter().position(|file| file.id == upto.file) else { continue };
            files.truncate(last + 1);
            let mut own: Vec<Place> = Vec::new();
            for mut file in files.into_iter().rev() {
                let limit = if file.id == upto.file { upto.offset } else { file.length };
                let source = u32::try_from(past.sources.len()).expect("far fewer files fit on a disk");
                let mut before = places(&mut file, limit, lines - whole(&own), source);
                past.sources.push((*id, file.id));
                before.append(&mut own);
                own = before;
                if whole(&own) >= lines {
                    break;
                }
            }
            past.places.append(&mut own);
            past.keep_last(lines);
        }
        past.places.shrink_to_fit();
        past
    }

    /// Keeps the last ones. Lines of one moment stay in the order of their files.
    fn keep_last(&mut self, lines: usize) {
        self.places.sort_by_key(|place| place.at_us);
        let (mut bytes, mut whole) = (0, 0);
        let enough = self.places.iter().rev().take_while(|place| {
            bytes += u64::from(place.length);
            whole += usize::from(!place.goes_on);
            bytes <= MOST_BYTES && whole <= lines
        });
        let surplus = self.places.len() - enough.count();
        self.places.drain(..surplus);
    }

    /// Returns the lines that are read at a time.
    pub fn pieces(&self) -> Vec<Range<usize>> {
        let (mut pieces, mut begin, mut bytes) = (Vec::new(), 0, 0);
        for (at, place) in self.places.iter().enumerate() {
            if at > begin && (at - begin == PIECE_LINES || bytes + place.length as usize > PIECE_BYTES) {
                pieces.push(begin..at);
                (begin, bytes) = (at, 0);
            }
            bytes += place.length as usize;
        }
        pieces.extend((begin < self.places.len()).then_some(begin..self.places.len()));
        pieces
    }

    /// Reads a piece. Lines whose file has gone meanwhile are left out. Blocks.
    pub fn read(&self, folders: &Folders, piece: Range<usize>) -> Vec<(InstanceId, Kept)> {
        let mut open: BTreeMap<u32, Option<fs::File>> = BTreeMap::new();
        let read = |place: &Place| {
            let (id, wanted) = self.sources[place.source as usize];
            let file = open.entry(place.source).or_insert_with(|| {
                files(folders, id).into_iter().find(|file| file.id == wanted).map(|file| file.file)
            });
            let mut bytes = vec![0; place.length as usize];
            file.as_ref()?.read_exact_at(&mut bytes, u64::from(place.offset)).ok()?;
            Some((id, parse(&bytes)?))
        };
        self.places[piece].iter().filter_map(read).collect()
    }
}

/// Returns the number of lines. A piece is a part of one.
fn whole(places: &[Place]) -> usize {
    places.iter().filter(|place| !place.goes_on).count()
}

/// Returns the places of the last lines of a file, below `limit`.
fn places(file: &mut LogFile, limit: u64, lines: usize, source: u32) -> Vec<Place> {
    let Ok(begin) = file.begin_of_last(limit, lines) else { return Vec::new() };
    if file.file.seek(SeekFrom::Start(begin)).is_err() {
        return Vec::new();
    }
    let mut places = Vec::new();
    let mut reader = BufReader::with_capacity(64 << 10, file.file.by_ref().take(limit - begin));
    let (mut offset, mut line) = (begin, Vec::new());
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).unwrap_or(0);
        let Some(words) = line.strip_suffix(b"\n") else { return places };
        if let (Some((at_us, ..)), Ok(offset), Ok(length)) =
            (split(words), u32::try_from(offset), u32::try_from(words.len()))
        {
            places.push(Place { at_us, source, offset, length, goes_on: is_piece(words) });
        }
        offset += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use bazooka_sandbox::protocol::{LOG_CURRENT, LOG_PREVIOUS};

    use super::{
        super::files::{
            ends,
            tests::{ID, Place as Output},
        },
        *,
    };

    fn read(folders: &Folders, past: &Past) -> Vec<(InstanceId, String)> {
        let pieces = past.pieces().into_iter().flat_map(|piece| past.read(folders, piece));
        pieces.map(|(id, kept)| (id, kept.line)).collect()
    }

    fn write(folders: &Folders, id: InstanceId, text: &str) {
        fs::create_dir_all(folders.log(id)).expect("there is room");
        fs::write(folders.log(id).join(LOG_CURRENT), text).expect("it can be written");
    }

    #[test]
    fn the_last_lines_go_back_into_the_file_before_and_end_where_following_begins() {
        let output = Output::new();
        output.write(LOG_PREVIOUS, "1 o one\n2 e two\n");
        output.write(LOG_CURRENT, "3 s three\n4 o fo");
        let upto = ends(&output.folders, [ID]);
        output.append("ur\n");
        let lines = |lines| {
            let found = read(&output.folders, &Past::find(&output.folders, &upto, lines));
            found.into_iter().map(|(_, line)| line).collect::<Vec<_>>()
        };
        assert_eq!(lines(2), ["two", "three"]);
        assert_eq!(lines(1), ["three"]);
        assert_eq!(lines(10), ["one", "two", "three"]);
        assert!(lines(0).is_empty());
    }

    #[test]
    fn a_line_in_pieces_is_one_of_the_last_lines() {
        let output = Output::new();
        output.write(LOG_PREVIOUS, "1 o one\n2 o two\n+3 o thr\n");
        output.write(LOG_CURRENT, "+4 o e\n5 o e\n6 o four\n");
        let upto = ends(&output.folders, [ID]);
        let lines = |lines| {
            let found = read(&output.folders, &Past::find(&output.folders, &upto, lines));
            found.into_iter().map(|(_, line)| line).collect::<Vec<_>>()
        };
        assert_eq!(lines(1), ["four"]);
        assert_eq!(lines(3), ["two", "thr", "e", "e", "four"]);
        assert_eq!(lines(4), ["one", "two", "thr", "e", "e", "four"]);
    }

    #[test]
    fn a_reader_holds_places_alone_and_gets_a_fixed_amount_however_many_print() {
        let output = Output::new();
        let text: String = (0..4_000).map(|n| format!("{n} o {n:01000}\n")).collect();
        for id in 1..=4 {
            write(&output.folders, InstanceId(id), &text);
        }
        let upto = ends(&output.folders, (1..=4).map(InstanceId));
        let past = Past::find(&output.folders, &upto, 10_000);
        let bytes: usize = past.places.iter().map(|place| place.length as usize).sum();
        assert!(bytes <= MOST_BYTES as usize && bytes > MOST_BYTES as usize - 2_000, "{bytes}");
        assert!(past.places.capacity() * size_of::<Place>() <= 240_000, "{}", past.places.capacity());
        for piece in past.pieces() {
            let bytes: usize =
                past.read(&output.folders, piece).iter().map(|(_, kept)| kept.line.len()).sum();
            assert!(bytes <= PIECE_BYTES, "{bytes}");
        }
        assert_eq!(read(&output.folders, &past).last(), Some(&(InstanceId(4), format!("{:01000}", 3_999))));
    }

    #[test]
    fn many_lines_are_merged_in_the_order_of_time() {
        let output = Output::new();
        let text = |from: u32| {
            (0..50_000).map(|n| format!("{} o {}\n", n * 2 + from, n * 2 + from)).collect::<String>()
        };
        write(&output.folders, InstanceId(1), &text(0));
        write(&output.folders, InstanceId(2), &text(1));
        let upto = ends(&output.folders, (1..=2).map(InstanceId));
        let past = Past::find(&output.folders, &upto, 9_000);
        let found: Vec<String> = read(&output.folders, &past).into_iter().map(|(_, line)| line).collect();
        let expected: Vec<String> = (91_000..100_000).map(|n| n.to_string()).collect();
        assert_eq!(found, expected);
    }
}
