//! The rules of pushes, at each revision of the coordinator; and what developers were promised.
//!
//! ```text
//! one push holds an app's turn; another rm takes it only after it was given back or its lease ended
//! a row moves within the turn of the push that moves it, by one generation, after that push's release passed its trial
//! a release of a push begins, and head follows it, within the push's turn
//! a dead rm's turn ends with its lease
//! in the end: no turn is left, each stored commit was released or tried again, and what was acknowledged is stored
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use visor::{
    deadlines::LEASE,
    keys::Key,
    mirror::Image,
    names::{AppName, ReleaseId},
    schema::ReleaseStatus,
    snapshot::{AppView, Snapshot},
    store::{Event, Keys, Store, WatchMessage},
};

use crate::world::World;

/// What a lease may last longer: the last renewal may have been on its way when the rm died.
const SLACK: Duration = Duration::from_secs(4);

/// An rm's process: its name and its id.
type Process = (String, String);

/// The rules. A clone is the same.
#[derive(Clone)]
pub struct PushRules {
    world: Arc<World>,
    book: Arc<Mutex<Book>>,
}

#[derive(Default)]
struct Book {
    image: Snapshot,
    before: Snapshot,
    /// The ids of all pushes.
    pushes: BTreeSet<String>,
    alive: BTreeSet<Process>,
    died: BTreeMap<Process, Instant>,
    /// Each commit that was ever stored, by app.
    stored: BTreeMap<AppName, BTreeSet<String>>,
    /// What developers were told has gone through.
    acknowledged: BTreeSet<(AppName, String)>,
}

impl PushRules {
    /// Over an empty coordinator.
    pub fn new(world: &Arc<World>) -> PushRules {
        PushRules { world: world.clone(), book: Arc::default() }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("nobody panics with it")
    }

    /// Sees each revision, for ever, and now and then which turns have outlived their rm.
    pub async fn watch(self) {
        let mut watch = self.world.store.watch(Keys::Prefix(String::new()), 1).await.expect("it is there");
        loop {
            let broken = tokio::select! {
                biased;
                message = watch.next() => match message {
                    Some(Ok(message)) => self.book().take_up(&message),
                    _ => vec!["the watch of the rules of pushes has ended".to_owned()],
                },
                () = sleep(Duration::from_millis(500)) => self.book().outlived(),
            };
            broken.into_iter().for_each(|what| self.world.breach(what));
        }
    }

    /// A process of an rm begins.
    pub fn started(&self, rm: &str, process: &str) {
        self.book().alive.insert((rm.to_owned(), process.to_owned()));
    }

    /// A process of an rm has died.
    pub fn died(&self, rm: &str, process: &str) {
        let process = (rm.to_owned(), process.to_owned());
        let mut book = self.book();
        book.alive.remove(&process);
        book.died.entry(process).or_insert_with(Instant::now);
    }

    /// A push is opened.
    pub fn opened(&self, push: &str) {
        self.book().pushes.insert(push.to_owned());
    }

    /// A developer is told that a push has gone through.
    pub fn acknowledge(&self, app: &AppName, commit: &str) {
        self.book().acknowledged.insert((app.clone(), commit.to_owned()));
    }

    /// The stored commit of a branch.
    pub fn stored_tip(&self, app: &AppName, branch: &str) -> Option<String> {
        let book = self.book();
        let row = book.image.apps.get(app)?.stored.as_ref()?;
        row.branches.get(branch).map(|branch| branch.commit.to_string())
    }

    /// What is not as it should be once all is well.
    pub fn amiss(&self) -> Option<String> {
        let book = self.book();
        for (app, view) in &book.image.apps {
            if let Some(turn) = &view.turn {
                return Some(format!("the turn of {app} is still that of {}", turn.push));
            }
            for branch in view.stored.iter().flat_map(|row| row.branches.values()) {
                let releases = || view.releases.values().filter(|release| release.rev == branch.commit);
                let is_handled = branch.no_rollout
                    || releases().any(|release| release.status == ReleaseStatus::Released)
                    || releases().any(|release| release.token == format!("{}-again", branch.push));
                if !is_handled {
                    return Some(format!("{} of {app} is stored, and was never released", branch.commit));
                }
            }
        }
        let lost = |(app, commit): &&(AppName, String)| {
            !book.stored.get(app).is_some_and(|stored| stored.contains(commit))
        };
        let lost = book.acknowledged.iter().find(lost);
        lost.map(|(app, commit)| format!("{commit} of {app} was acknowledged, and is not stored"))
    }
}

impl Book {
    fn take_up(&mut self, message: &WatchMessage) -> Vec<String> {
        apply(&mut self.image, message);
        let mut broken = Vec::new();
        for event in &message.events {
            match event.key().parse::<Key>() {
                Ok(Key::Turn(app)) => broken.extend(self.judge_turn(&app)),
                Ok(Key::Stored(app)) => broken.extend(self.judge_stored(&app)),
                Ok(Key::Release(app, release)) => broken.extend(self.judge_release(&app, release)),
                Ok(Key::Head(app)) => broken.extend(self.judge_head(&app)),
                _ => {}
            }
        }
        apply(&mut self.before, message);
        broken
    }

    /// The turns whose rm has been dead for longer than a lease.
    fn outlived(&self) -> Vec<String> {
        let turns = self.image.apps.iter().filter_map(|(app, view)| Some((app, view.turn.as_ref()?)));
        let late = turns.filter(|(_, turn)| {
            let process = (turn.rm.to_string(), turn.process.clone());
            self.died.get(&process).is_some_and(|at| at.elapsed() > LEASE + SLACK)
        });
        late.map(|(app, turn)| format!("{} is dead and still has the turn of {app}", turn.rm)).collect()
    }

    fn judge_turn(&self, app: &AppName) -> Option<String> {
        let (was, is) = (self.before.apps.get(app)?.turn.as_ref()?, self.image.apps.get(app)?.turn.as_ref()?);
        let process = (was.rm.to_string(), was.process.clone());
        let is_inherited = was.rm == is.rm && was.process != is.process && !self.alive.contains(&process);
        (was.push != is.push && !is_inherited)
            .then(|| format!("{} takes the turn of {app} from {}", is.push, was.push))
    }

    fn judge_stored(&mut self, app: &AppName) -> Option<String> {
        let view = self.image.apps.get(app)?;
        let is = view.stored.as_ref()?;
        let was = self.before.apps.get(app).and_then(|view| view.stored.as_ref());
        if is.generation != was.map_or(0, |row| row.generation) + 1 {
            return Some(format!("the row of {app} goes to generation {}", is.generation));
        }
        for (name, branch) in &is.branches {
            self.stored.entry(app.clone()).or_default().insert(branch.commit.to_string());
            if was.and_then(|row| row.branches.get(name)) == Some(branch) {
                continue;
            }
            if !has_turn(view, &branch.push) {
                return Some(format!("{} moves the row of {app} without its turn", branch.push));
            }
            let passed = view.releases.values().filter(|release| release.token == branch.push);
            let passed = passed.map(|release| release.status);
            let passed = passed
                .into_iter()
                .any(|status| matches!(status, ReleaseStatus::Verified | ReleaseStatus::Released));
            // A rev that is head already makes no release.
            let is_head = view.head_release().is_some_and(|(_, head)| head.rev == branch.commit);
            if !branch.no_rollout && !passed && !is_head {
                return Some(format!(
                    "{} moves the row of {app}, and its release has not passed",
                    branch.push
                ));
            }
        }
        None
    }

    /// A push's release begins within its turn.
    fn judge_release(&self, app: &AppName, release: ReleaseId) -> Option<String> {
        if self.before.apps.get(app).is_some_and(|view| view.releases.contains_key(&release)) {
            return None;
        }
        let view = self.image.apps.get(app)?;
        let token = &view.releases.get(&release)?.token;
        (self.pushes.contains(token) && !has_turn(view, token))
            .then(|| format!("{token} begins {release} of {app} without its turn"))
    }

    /// Head follows a push's release within its turn.
    fn judge_head(&self, app: &AppName) -> Option<String> {
        let view = self.image.apps.get(app)?;
        let (release, row) = view.head_release()?;
        (self.pushes.contains(&row.token) && !has_turn(view, &row.token))
            .then(|| format!("{} makes {release} head of {app} without its turn", row.token))
    }
}

fn has_turn(view: &AppView, push: &str) -> bool {
    view.turn.as_ref().is_some_and(|turn| turn.push == push)
}

fn apply(image: &mut Snapshot, message: &WatchMessage) {
    for event in &message.events {
        match event {
            Event::Put(entry) => image.put(entry),
            Event::Delete { key, revision } => image.delete(key, *revision),
        }
    }
    image.set_revision(message.revision);
}
