//! The news of output: which instances have written since the last look.
//!
//! Owns the kernel's watches on the folders of output (inotify), which exist only while output is followed. An instance
//! for which there is none, because the machine has too few, counts as having written at each look.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::Path,
};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::io::{Interest, unix::AsyncFd};
use visor::names::InstanceId;

use crate::host::descriptor::readable;

/// The most events that are taken at a look. What is left is there at the next one.
const MOST_EVENTS: usize = 4_096;

/// The watches.
#[derive(Debug, Default)]
pub struct News {
    watches: Option<AsyncFd<OwnedFd>>,
    /// The number of each instance's watch; none where the kernel gave none.
    numbers: BTreeMap<InstanceId, Option<i32>>,
    ids: BTreeMap<i32, InstanceId>,
}

impl News {
    /// Watches these folders, and no others.
    pub fn watch(
        &mut self,
        wanted: &BTreeSet<InstanceId>,
        folder: impl Fn(InstanceId) -> Option<std::path::PathBuf>,
    ) {
        let gone: Vec<InstanceId> = self.numbers.keys().copied().filter(|id| !wanted.contains(id)).collect();
        for id in gone {
            if let (Some(Some(number)), Some(watches)) = (self.numbers.remove(&id), &self.watches) {
                self.ids.remove(&number);
                // The kernel removes a removed folder's watch itself.
                let _ = inotify::remove_watch(watches.get_ref(), number);
            }
        }
        for id in wanted {
            if self.numbers.contains_key(id) {
                continue;
            }
            // What has ended writes nothing more.
            let Some(folder) = folder(*id) else { continue };
            let number = self.add(&folder);
            if let Err(error) = &number {
                tracing::debug!(instance = %id, error = %error, "no watch for its output; looking again and again");
            }
            let number = number.ok();
            self.numbers.insert(*id, number);
            self.ids.extend(number.map(|number| (number, *id)));
        }
        if self.numbers.is_empty() {
            self.watches = None;
        }
    }

    fn add(&mut self, folder: &Path) -> io::Result<i32> {
        let watches = match &self.watches {
            Some(watches) => watches,
            None => {
                let watches = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
                self.watches.insert(readable(watches)?)
            }
        };
        Ok(inotify::add_watch(watches.get_ref(), folder, WatchFlags::MODIFY | WatchFlags::ONLYDIR)?)
    }

    /// Reports whether there is an instance that has to be looked at without news.
    pub fn is_blind(&self) -> bool {
        self.numbers.values().any(Option::is_none)
    }

    /// Waits for news.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn arrived(&self) {
        match &self.watches {
            Some(watches) => drop(watches.readable().await),
            None => std::future::pending().await,
        }
    }

    /// Returns the instances that may have written since the last call.
    pub fn take(&mut self) -> BTreeSet<InstanceId> {
        let mut wrote: BTreeSet<InstanceId> =
            self.numbers.iter().filter(|(_, number)| number.is_none()).map(|(id, _)| *id).collect();
        let Some(watches) = &self.watches else { return wrote };
        let mut lost = false;
        // Once all is taken, the call says so, which clears the readiness.
        let _ = watches.try_io(Interest::READABLE, |watches| {
            let mut buffer = [MaybeUninit::uninit(); 4_096];
            let mut reader = Reader::new(watches, &mut buffer);
            for _ in 0..MOST_EVENTS {
                let event = reader.next()?;
                lost |= event.events().contains(ReadFlags::QUEUE_OVERFLOW);
                wrote.extend(self.ids.get(&event.wd()));
            }
            // The events of the buffer that weren't taken would be lost.
            lost |= !reader.is_buffer_empty();
            Ok(())
        });
        if lost {
            wrote.extend(self.numbers.keys());
        }
        wrote
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, time::Duration};

    use super::*;

    #[tokio::test]
    async fn who_wrote_is_told_and_who_is_not_watched_any_more_is_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = |id: InstanceId| dir.path().join(id.to_string());
        let write = |id| {
            let path = folder(id).join("current");
            let mut file = fs::File::options().create(true).append(true).open(path).expect("it opens");
            file.write_all(b"1 o one\n").expect("it can be written");
        };
        let (a, b, ended) = (InstanceId(1), InstanceId(2), InstanceId(3));
        fs::create_dir_all(folder(a)).expect("there is room");
        fs::create_dir_all(folder(b)).expect("there is room");
        let mut news = News::default();
        news.watch(&BTreeSet::from([a, b, ended]), |id| Some(folder(id)).filter(|_| id != ended));
        assert!(!news.is_blind());
        assert_eq!(news.take(), BTreeSet::new());
        write(b);
        tokio::time::timeout(Duration::from_secs(10), news.arrived()).await.expect("it is told");
        assert_eq!(news.take(), BTreeSet::from([b]));
        assert_eq!(news.take(), BTreeSet::new(), "it is told once");
        news.watch(&BTreeSet::from([a]), |id| Some(folder(id)));
        write(b);
        write(a);
        tokio::time::timeout(Duration::from_secs(10), news.arrived()).await.expect("it is told");
        assert_eq!(news.take(), BTreeSet::from([a]));
        news.watch(&BTreeSet::new(), |_| None);
        assert!(news.watches.is_none(), "nothing is held while nobody follows");
        // Where there is no watch, it is looked at each time.
        news.watch(&BTreeSet::from([ended]), |id| Some(folder(id)));
        assert!(news.is_blind());
        assert_eq!(news.take(), BTreeSet::from([ended]));
    }
}
