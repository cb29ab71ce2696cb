//! bazooka-pm's notes on its instances, so that the next bazooka-pm continues from them.
//!
//! Owns reading them at start, and writing them. They are not synced: a loss of power ends the instances too. Where no
//! note was written yet, the spec of the start has enough.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use serde::{Deserialize, Serialize};
use visor::{
    names::{AppName, EnvRef, InstanceId},
    planted::{Bug, planted},
    schema::Handed,
    seal::Vars,
    transitions::envs::EMPTY_ENV,
};

use super::{
    folders::{Folders, LOG, RECORD},
    logs::{Owner, Table},
    model::{Local, Phase},
    process::FullSpec,
};
use bazooka_sandbox::{
    files::{append, entries, load_file, names, remove_all, try_lock, write_file},
    machine::boot_id,
    protocol::{Start, lines},
};

/// The number of ended instances whose output is kept.
const ENDED: usize = 200;

/// The bytes that the output of all ended instances may take together.
const ENDED_BYTES: u64 = 256 << 20;

/// The size in bytes from which `instance.json` is written anew instead of appended to.
const RECORD_BYTES: u64 = 64 << 10;

/// The bytes read from the end of a record at first: more than most lines.
const LAST_BYTES: u64 = 8 << 10;

/// A line of `instance.json`; the last line counts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The boot in which the line was written.
    pub boot_id: String,
    /// The state of the instance.
    pub local: Local,
}

impl Record {
    /// Reads the last note on an instance from its folder; none if there is no complete one, or it can't be read.
    pub fn read(folder: &Path) -> Option<Record> {
        Record::load(folder).ok().flatten()
    }

    /// Reads the last note on an instance from its folder; none if there is no complete one.
    ///
    /// # Errors
    /// The file system's: a note that can't be looked at isn't missing.
    fn load(folder: &Path) -> io::Result<Option<Record>> {
        let mut file = match fs::File::open(folder.join(RECORD)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let known = file.metadata()?;
        if !known.is_file() {
            return Err(io::Error::other("a note that is no file"));
        }
        Record::last(&mut file, known.len())
    }

    /// Finds the last complete line that holds a note, from the end on.
    fn last(file: &mut (impl Read + Seek), length: u64) -> io::Result<Option<Record>> {
        let mut bytes = LAST_BYTES;
        loop {
            let begin = length.saturating_sub(bytes);
            file.seek(SeekFrom::Start(begin))?;
            let mut text = Vec::new();
            file.by_ref().take(length - begin).read_to_end(&mut text)?;
            // The first line may begin before the part that was read.
            let whole = match (begin, text.iter().position(|byte| *byte == b'\n')) {
                (0, _) => &text[..],
                (_, Some(at)) => &text[at + 1..],
                (_, None) => &[],
            };
            let from_end = whole.split_inclusive(|byte| *byte == b'\n').rev();
            let found = from_end.filter_map(|line| lines(line).next()).next();
            if found.is_some() || begin == 0 {
                return Ok(found);
            }
            bytes *= 4;
        }
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let file = fs::File::options().create(true).append(true).mode(0o600).open(path)?;
        // Appending costs less than replacing: no file is created and none removed.
        if file.metadata()?.len() < RECORD_BYTES { append(&file, self) } else { write_file(path, self) }
    }
}

/// The state found at start.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The instances.
    pub instances: BTreeMap<InstanceId, Local>,
    /// The envs that they run with, sealed.
    pub envs: BTreeMap<(AppName, EnvRef), Handed>,
    /// The envs that an earlier version wrote in plain text.
    pub plain_envs: BTreeMap<(AppName, EnvRef), Vars>,
    /// The instances with output, running and ended.
    pub outputs: Table,
}

/// Reads what an earlier bazooka-pm has written. Blocks.
///
/// # Errors
/// If something can't be looked at: an instance that runs would count as none, and be started a second time.
pub fn recover(folders: &Folders) -> io::Result<Recovered> {
    let boot = boot_id();
    if boot.is_empty() {
        return Err(io::Error::other("the machine's boot id can't be read"));
    }
    let mut recovered = Recovered::default();
    for id in folders.all()? {
        let last_run = folders.runs(id)?.last().copied().unwrap_or(0);
        let record = Record::load(&folders.instance(id))?;
        let spec = Start::<FullSpec>::load(&folders.run(id, last_run))?.spec;
        let same_boot = record.as_ref().is_some_and(|record| record.boot_id == boot);
        if let Some(spec) = &spec {
            let assignment = &spec.pm.local.assignment;
            let plain = spec.pm.vars.clone().filter(|_| assignment.env != EMPTY_ENV);
            let key = (assignment.app.clone(), assignment.env);
            recovered.plain_envs.extend(plain.map(|vars| (key, vars)));
        }
        let is_held = is_held(folders, id, last_run)?;
        match record.map(|record| record.local).or(spec.map(|spec| spec.pm.local)) {
            Some(known) => {
                let traces = Traces { known, last_run, is_held, same_boot };
                recovered.instances.insert(id, traces.resumed());
            }
            // The start was cut short before anything was written, and nothing runs.
            None if !is_held => drop(remove_all(&folders.instance(id))),
            None => {}
        }
    }
    recovered.outputs = outputs(folders, &recovered.instances);
    let used = |app: &AppName, env: EnvRef| {
        let mut all = recovered.instances.values().map(|local| &local.assignment);
        all.any(|assignment| assignment.app == *app && assignment.env == env)
    };
    for name in names(&folders.envs())? {
        let path = folders.envs().join(&name);
        let key = name.rsplit_once('.').and_then(|(app, env)| Some((app.parse().ok()?, env.parse().ok()?)));
        match (key, load_file(&path)?) {
            (Some((app, env)), Some(handed)) if used(&app, env) => {
                recovered.envs.insert((app, env), handed);
            }
            // The file belongs to no instance, or was cut short.
            _ => drop(fs::remove_file(&path)),
        }
    }
    Ok(recovered)
}

/// Returns the instances with output: of these, and of the ended ones. Blocks.
fn outputs(folders: &Folders, instances: &BTreeMap<InstanceId, Local>) -> Table {
    let owner = |local: &Local| {
        let (app, proc) = (local.assignment.app.clone(), local.assignment.proc.clone());
        Owner { app, proc }
    };
    let here = instances.iter().filter(|(id, _)| folders.log(**id).is_dir());
    let here = here.map(|(id, local)| (*id, owner(local)));
    let ended = Folders::ids(&folders.ended()).into_iter().filter_map(|id| {
        let record = Record::read(&folders.ended().join(id.to_string()))?;
        Some((id, owner(&record.local)))
    });
    ended.chain(here).collect()
}

/// Writes an env down as the host was handed it. Blocks.
///
/// # Errors
/// The file system's; the earlier file stays.
pub fn keep_env(folders: &Folders, app: &AppName, env: EnvRef, handed: &Handed) -> io::Result<()> {
    write_file(&folders.env(app, env), handed)
}

/// Deletes the file of an env. Blocks, for as long as one file takes.
pub fn forget_env(folders: &Folders, app: &AppName, env: EnvRef) {
    let _ = fs::remove_file(folders.env(app, env));
}

/// The traces of an instance of an earlier bazooka-pm.
pub struct Traces {
    /// The last note on it, or the spec of its last start.
    pub known: Local,
    /// The number of its last start.
    pub last_run: u32,
    /// True if a shim of it may run.
    pub is_held: bool,
    /// True if the note was written since the machine was started.
    pub same_boot: bool,
}

impl Traces {
    /// Returns the state in which the instance continues.
    pub fn resumed(self) -> Local {
        let Traces { known: mut local, last_run, is_held, same_boot } = self;
        let newer = last_run > local.run;
        local.run = local.run.max(last_run);
        if newer || local.may_run() || is_held {
            let is_forgotten = planted(Bug::RunningInstanceIsNotFound);
            local.phase = if is_forgotten { Phase::Waiting } else { Phase::Found };
        } else if !same_boot && matches!(local.phase, Phase::Backoff { .. }) {
            // The monotonic clock has started from zero again.
            local.phase = Phase::Waiting;
        }
        local
    }
}

fn is_held(folders: &Folders, id: InstanceId, run: u32) -> io::Result<bool> {
    match fs::File::options().append(true).open(folders.run(id, run)) {
        Ok(file) => Ok(try_lock(&file)?.is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A note to write down.
#[derive(Clone, Debug)]
pub enum Note {
    /// The state of an instance.
    Keep(InstanceId, Box<Local>),
    /// The instance is over: only its output is kept.
    Archive(InstanceId),
}

/// Writes notes down, in order. Returns the instances whose output has been removed. Blocks.
pub fn write(folders: &Folders, notes: Vec<Note>) -> Vec<InstanceId> {
    let boot = boot_id();
    let mut archives = false;
    for note in notes {
        let (id, done) = match note {
            Note::Keep(id, local) => (id, keep(folders, id, Record { boot_id: boot.clone(), local: *local })),
            Note::Archive(id) => {
                archives = true;
                (id, put_one_away(folders, id))
            }
        };
        if let Err(error) = done {
            tracing::warn!(instance = %id, error = %error, "can't write down what is known of an instance");
        }
    }
    if archives { make_room(folders) } else { Vec::new() }
}

fn keep(folders: &Folders, id: InstanceId, record: Record) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o711).create(folders.instance(id))?;
    record.write(&folders.record(id))
}

fn put_one_away(folders: &Folders, id: InstanceId) -> io::Result<()> {
    let folder = folders.instance(id);
    for name in entries(&folder).filter(|name| name != LOG && name != RECORD) {
        let path = folder.join(name);
        if path.is_dir() { remove_all(&path)? } else { fs::remove_file(&path)? }
    }
    if !folder.join(LOG).is_dir() {
        // The instance never ran, so there is no output to keep.
        return remove_all(&folder);
    }
    fs::rename(&folder, folders.ended().join(id.to_string()))
}

/// Removes the oldest output of ended instances, and returns whose that was.
fn make_room(folders: &Folders) -> Vec<InstanceId> {
    let mut kept = Folders::ids(&folders.ended());
    kept.reverse();
    let (mut bytes, mut removed) = (0, Vec::new());
    for (at, id) in kept.into_iter().enumerate() {
        let folder = folders.ended().join(id.to_string());
        let log = folder.join(LOG);
        bytes += entries(&log).filter_map(|name| Some(fs::metadata(log.join(name)).ok()?.len())).sum::<u64>();
        if at >= ENDED || bytes > ENDED_BYTES {
            let _ = remove_all(&folder);
            removed.push(id);
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::simulation::assignment;

    #[test]
    fn the_last_that_was_written_counts_however_often_that_was() {
        let folder = tempfile::tempdir().expect("there is room");
        let folders = Folders::create(folder.path()).expect("there is room");
        let id = InstanceId(7);
        let local = |run| Local { run, ..Local::claimed(assignment("web"), jiff::Timestamp::UNIX_EPOCH) };
        for run in 1..=500 {
            write(&folders, vec![Note::Keep(id, Box::new(local(run)))]);
        }
        let record = Record::read(&folders.instance(id)).expect("it was written");
        assert_eq!(record.local, local(500));
        let length = fs::metadata(folders.record(id)).expect("it was written").len();
        assert!(length < 2 * RECORD_BYTES, "{length}");
        // The disk was full in the middle of a line.
        let mut text = fs::read(folders.record(id)).expect("it was written");
        text.truncate(text.len() - 10);
        fs::write(folders.record(id), text).expect("there is room");
        let record = Record::read(&folders.instance(id)).expect("the line before is whole");
        assert_eq!(record.local, local(499));
    }

    #[test]
    fn an_instance_that_cannot_be_looked_at_is_neither_forgotten_nor_removed() {
        let dir = tempfile::tempdir().expect("there is room");
        let folders = Folders::create(dir.path()).expect("there is room");
        let id = InstanceId(7);
        // A folder can't be read as a file, whichever user tries.
        for unreadable in [folders.record(id), folders.run(id, 1), folders.envs().join("shop.e1")] {
            fs::create_dir_all(&unreadable).expect("there is room");
            let recovered = recover(&folders);
            assert!(recovered.is_err(), "{}: {recovered:?}", unreadable.display());
            assert!(unreadable.is_dir(), "{} stays", unreadable.display());
            fs::remove_dir(&unreadable).expect("it is empty");
        }
        assert!(recover(&folders).is_ok_and(|recovered| recovered.instances.is_empty()));
        assert!(!folders.instance(id).exists(), "a start that was cut short leaves nothing");
    }

    /// A file that counts what is read of it.
    struct Counted(io::Cursor<Vec<u8>>, usize);

    impl Read for Counted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer).inspect(|read| self.1 += read)
        }
    }

    impl Seek for Counted {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    #[test]
    fn a_record_is_read_from_its_end() {
        let record = |run| {
            let local = Local { run, ..Local::claimed(assignment("web"), jiff::Timestamp::UNIX_EPOCH) };
            serde_json::to_string(&Record { boot_id: "boot".into(), local }).expect("it is data") + "\n"
        };
        let last = |text: &str| {
            let mut file = Counted(io::Cursor::new(text.as_bytes().to_vec()), 0);
            let found = Record::last(&mut file, text.len() as u64).expect("it is in memory");
            (found.map(|record| record.local.run), file.1 as u64)
        };
        let many: String = (1..=600).map(record).collect();
        assert!(many.len() as u64 > 2 * RECORD_BYTES);
        assert_eq!(last(&many), (Some(600), LAST_BYTES));
        // The disk was full, more than once.
        let torn = many + &"x".repeat(20_000) + "\n{\"boot_id\"";
        let (run, read) = last(&torn);
        assert_eq!(run, Some(600));
        assert!(read < RECORD_BYTES, "{read}");
        assert_eq!(last(&torn[..300]).0, None);
        assert_eq!(last("").0, None);
    }

    #[test]
    fn output_is_known_after_a_restart_until_it_is_removed() {
        let folder = tempfile::tempdir().expect("there is room");
        let folders = Folders::create(folder.path()).expect("there is room");
        let keep = |id: u64| {
            let id = InstanceId(id);
            let local = Local { run: 1, ..Local::claimed(assignment("web"), jiff::Timestamp::UNIX_EPOCH) };
            fs::create_dir_all(folders.log(id)).expect("there is room");
            assert!(write(&folders, vec![Note::Keep(id, Box::new(local))]).is_empty());
            id
        };
        let known = || {
            recover(&folders)
                .expect("it can be read")
                .outputs
                .into_keys()
                .map(|id| id.0)
                .collect::<Vec<u64>>()
        };
        let ids: Vec<InstanceId> = (1..=ENDED as u64 + 2).map(keep).collect();
        assert_eq!(known().len(), ENDED + 2);
        let ended = ids[..=ENDED].iter().map(|id| Note::Archive(*id)).collect();
        assert_eq!(write(&folders, ended), [InstanceId(1)], "the oldest one goes");
        assert_eq!(known(), (2..=ENDED as u64 + 2).collect::<Vec<_>>());
    }
}
