//! Apps' repositories: from what the coordinator says to what the disk has.
//!
//! Owns the plan (pure) and the loop that carries it out. A repository is removed only where its app is known to
//! have been destroyed: a name that is merely missing from the coordinator keeps it, since the
//! coordinator may have lost more than the app, and a repository can't be made again.
//!
//! ```text
//! absent ─create─▶ created ─configure─▶ configured ─install hooks─▶ ready      each step reported in repos/A
//!   ▲                                                                │
//!   └──remove── forgotten ◀─forget (nothing runs)── doomed ◀─doom────┘  (the app is being destroyed)
//! ```

pub mod config;
pub mod disk;
mod run;

use std::{collections::BTreeMap, path::Path};

use visor::{
    names::{AppName, HostName},
    schema::{App, Extra, Repo},
    snapshot::AppView,
};

pub use run::Repositories;

use crate::apps::Known;

/// What the disk has of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnDisk {
    /// The registration that it belongs to; empty: none that is known.
    pub token: String,
    /// Its configuration is as it should be.
    pub configured: bool,
    /// Its hooks are in place.
    pub hooks: bool,
    /// Its app is being destroyed.
    pub doomed: bool,
}

/// A step towards what should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make a bare repository for this registration.
    Create {
        /// Its token.
        token: String,
    },
    /// Write its configuration.
    Configure,
    /// Put its hooks in place.
    InstallHooks,
    /// Say in the coordinator how far it is.
    Report(Repo),
    /// Note on disk that its app is being destroyed.
    Doom,
    /// Have the app's rows deleted, if nothing of it runs.
    Forget,
    /// Take it away with all that belongs to it.
    Remove,
}

/// Who this rm is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// Its name.
    pub name: HostName,
    /// Names this process among those of its name.
    pub process: String,
    /// The base of its endpoint as others reach it.
    pub url: String,
    /// The base of what is pushed to.
    pub git_url: String,
    /// It shares a file storage with other rms: each keeps a copy of what it is asked for.
    pub shares: bool,
}

impl Own {
    /// Where an app's repository is pushed to.
    pub fn repo_url(&self, app: &AppName) -> String {
        format!("{}/{app}.git", self.git_url)
    }
}

/// The steps for each app that needs some, in order. Each is taken from what is observed, so that a rm
/// that dies anywhere goes on where it was.
pub fn plan(known: &Known, disk: &BTreeMap<AppName, OnDisk>, own: &Own) -> BTreeMap<AppName, Vec<Step>> {
    let mut plan = BTreeMap::new();
    if !known.complete {
        return plan;
    }
    for (app, view) in &known.apps {
        let Some(row) = view.app.as_ref() else { continue };
        let repo = view.repo.as_ref().map(|repo| &repo.value);
        let steps = if own.shares {
            shared(app, view, row, disk.get(app), known, own)
        } else if !is_ours(app, repo, &row.token, disk.contains_key(app), known, own) {
            continue;
        } else if row.destroying {
            destroying(disk.get(app), view.instances.is_empty())
        } else {
            wanted(app, &row.token, repo, disk.get(app), own)
        };
        if !steps.is_empty() {
            plan.insert(app.clone(), steps);
        }
    }
    for (app, repo) in disk {
        if repo.doomed && !known.apps.contains_key(app) {
            plan.insert(app.clone(), vec![Step::Remove]);
        }
    }
    plan
}

/// Where a file storage is shared, the first rm that is there speaks for all of them; each keeps the copies that
/// it has, and makes others when they are asked for.
fn shared(
    app: &AppName,
    view: &AppView,
    row: &App,
    disk: Option<&OnDisk>,
    known: &Known,
    own: &Own,
) -> Vec<Step> {
    let first = known.rms.keys().filter(|name| **name != own.name).all(|name| own.name < *name);
    if row.destroying {
        return destroying(disk, first && view.instances.is_empty());
    }
    let said = view.repo.as_ref().map(|repo| &repo.value);
    let ready = said.is_some_and(|said| {
        said.token == row.token
            && said.created
            && said.configured
            && said.hooks
            && said.url == own.repo_url(app)
    });
    if disk.is_none() && (ready || !first) {
        return Vec::new();
    }
    let mut steps = wanted(app, &row.token, said, disk, own);
    steps.retain(|step| first || !matches!(step, Step::Report(_)));
    steps
}

fn destroying(disk: Option<&OnDisk>, nothing_runs: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    if disk.is_some_and(|disk| !disk.doomed) {
        steps.push(Step::Doom);
    }
    if nothing_runs {
        steps.push(Step::Forget);
        if disk.is_some() {
            steps.push(Step::Remove);
        }
    }
    steps
}

fn wanted(app: &AppName, token: &str, said: Option<&Repo>, disk: Option<&OnDisk>, own: &Own) -> Vec<Step> {
    let mut steps = Vec::new();
    let disk = match disk {
        // Another registration's: the name was given up, and is somebody else's now.
        Some(disk) if disk.token != token || disk.doomed => {
            steps.push(Step::Remove);
            None
        }
        other => other,
    };
    let mut repo = Repo { url: own.repo_url(app), token: token.into(), ..Repo::default() };
    if let Some(said) = said.filter(|said| said.token == token) {
        repo.extra = said.extra.clone();
    } else {
        repo.extra = Extra::new();
    }
    let (created, configured, hooks) =
        disk.map_or((false, false, false), |disk| (true, disk.configured, disk.hooks));
    let mut done = |steps: &mut Vec<Step>, step: Option<Step>, mark: fn(&mut Repo)| {
        mark(&mut repo);
        if let Some(step) = step {
            steps.push(step);
            steps.push(Step::Report(repo.clone()));
        }
    };
    done(&mut steps, (!created).then(|| Step::Create { token: token.into() }), |repo| repo.created = true);
    done(&mut steps, (!configured).then_some(Step::Configure), |repo| repo.configured = true);
    done(&mut steps, (!hooks).then_some(Step::InstallHooks), |repo| repo.hooks = true);
    if steps.is_empty() && said != Some(&repo) {
        steps.push(Step::Report(repo));
    }
    steps
}

/// Whether this rm keeps an app's repository. With several, it is whose url the row has; of a new app, or one whose
/// rm has gone, the one that has it on disk, else the first by name that is there.
fn is_ours(app: &AppName, repo: Option<&Repo>, token: &str, on_disk: bool, known: &Known, own: &Own) -> bool {
    let others = || known.rms.iter().filter(|(name, _)| **name != own.name);
    if let Some(repo) = repo.filter(|repo| repo.token == token) {
        if repo.url == own.repo_url(app) {
            return true;
        }
        if others().any(|(_, rm)| repo.url == format!("{}/{app}.git", rm.url)) {
            return false;
        }
    }
    on_disk || others().all(|(name, _)| own.name < *name)
}

/// Whether a folder's name is that of an app's repository.
pub fn app_of(folder: &Path) -> Option<AppName> {
    folder.file_name()?.to_str()?.strip_suffix(".git")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use visor::{
        schema::{Instance, Rm},
        snapshot::Versioned,
    };

    use super::*;

    fn at<T>(value: T) -> Versioned<T> {
        Versioned { value, create_revision: 1, mod_revision: 1, lease: None }
    }

    fn own() -> Own {
        let url = "http://127.0.0.1:1".to_owned();
        Own {
            name: "rm1".parse().expect("valid"),
            process: "p".into(),
            git_url: url.clone(),
            url,
            shares: false,
        }
    }

    fn app() -> AppName {
        "a".parse().expect("valid")
    }

    fn repo(created: bool, configured: bool, hooks: bool) -> Repo {
        Repo {
            url: "http://127.0.0.1:1/a.git".into(),
            created,
            configured,
            hooks,
            token: "t1".into(),
            extra: Extra::new(),
        }
    }

    fn on_disk() -> OnDisk {
        OnDisk { token: "t1".into(), configured: true, hooks: true, doomed: false }
    }

    struct Case {
        known: Known,
        disk: BTreeMap<AppName, OnDisk>,
    }

    impl Case {
        fn registered(said: Option<Repo>, disk: Option<OnDisk>) -> Case {
            let row = App {
                owner: "ada".into(),
                created_at: Timestamp::UNIX_EPOCH,
                token: "t1".into(),
                destroying: false,
                extra: Extra::new(),
            };
            let view = AppView { app: Some(at(row)), repo: said.map(at), ..AppView::default() };
            let apps = BTreeMap::from([(app(), Arc::new(view))]);
            Case {
                known: Known { apps, complete: true, ..Known::default() },
                disk: disk.into_iter().map(|disk| (app(), disk)).collect(),
            }
        }

        fn edit(mut self, edit: impl FnOnce(&mut AppView)) -> Case {
            edit(Arc::make_mut(self.known.apps.get_mut(&app()).expect("it is registered")));
            self
        }

        fn destroying(self) -> Case {
            self.edit(|view| view.app.as_mut().expect("registered").value.destroying = true)
        }

        fn running(self) -> Case {
            let instance = Instance {
                host: "h".parse().expect("valid"),
                proc: "web".parse().expect("valid"),
                release: "v1".parse().expect("valid"),
                rev: "1".repeat(40).parse().expect("valid"),
                index: 0,
                placed_at: Timestamp::UNIX_EPOCH,
                reason: String::new(),
                extra: Extra::new(),
            };
            self.edit(|view| drop(view.instances.insert("1".parse().expect("valid"), at(instance))))
        }

        fn other_rm(mut self, name: &str, url: &str) -> Case {
            let rm = Rm::at(url);
            self.known.rms.insert(name.parse().expect("valid"), rm);
            self
        }

        fn plan(&self) -> Vec<Step> {
            self.plan_as(&own())
        }

        fn plan_as(&self, own: &Own) -> Vec<Step> {
            plan(&self.known, &self.disk, own).remove(&app()).unwrap_or_default()
        }
    }

    #[test]
    fn a_new_app_gets_its_repository_step_by_step_and_each_is_told() {
        let create = Step::Create { token: "t1".into() };
        assert_eq!(
            Case::registered(None, None).plan(),
            [
                create,
                Step::Report(repo(true, false, false)),
                Step::Configure,
                Step::Report(repo(true, true, false)),
                Step::InstallHooks,
                Step::Report(repo(true, true, true)),
            ]
        );
    }

    #[test]
    fn what_an_rm_left_half_done_is_taken_up_where_it_was() {
        let half = OnDisk { configured: true, hooks: false, ..on_disk() };
        assert_eq!(
            Case::registered(Some(repo(true, false, false)), Some(half)).plan(),
            [Step::InstallHooks, Step::Report(repo(true, true, true))]
        );
        let untold = Case::registered(Some(repo(true, true, false)), Some(on_disk()));
        assert_eq!(untold.plan(), [Step::Report(repo(true, true, true))]);
        assert_eq!(Case::registered(Some(repo(true, true, true)), Some(on_disk())).plan(), []);
    }

    #[test]
    fn a_name_that_is_registered_anew_gets_a_fresh_repository() {
        let old = OnDisk { token: "t0".into(), ..on_disk() };
        let steps = Case::registered(None, Some(old)).plan();
        assert_eq!(steps[..2], [Step::Remove, Step::Create { token: "t1".into() }]);
        // A row that a registration before left doesn't count for this one.
        let stale = Repo { token: "t0".into(), ..repo(true, true, true) };
        assert_eq!(
            Case::registered(Some(stale), Some(on_disk())).plan(),
            [Step::Report(repo(true, true, true))]
        );
    }

    #[test]
    fn a_destroyed_app_is_forgotten_once_nothing_of_it_runs() {
        let case = Case::registered(None, Some(on_disk())).destroying();
        assert_eq!(case.plan(), [Step::Doom, Step::Forget, Step::Remove]);
        let case = case.running();
        assert_eq!(case.plan(), [Step::Doom]);
        let doomed = OnDisk { doomed: true, ..on_disk() };
        let case = Case::registered(None, Some(doomed.clone())).destroying().running();
        assert_eq!(case.plan(), []);
        assert_eq!(Case::registered(None, None).destroying().plan(), [Step::Forget]);
        // An rm that died between the two.
        let mut case = Case::registered(None, Some(doomed));
        case.known.apps.clear();
        assert_eq!(case.plan(), [Step::Remove]);
    }

    #[test]
    fn a_repository_is_kept_while_its_app_is_not_known_to_be_destroyed() {
        let mut case = Case::registered(None, Some(on_disk()));
        case.known.apps.clear();
        assert_eq!(case.plan(), []);
        let mut case = Case::registered(None, Some(OnDisk { doomed: true, ..on_disk() }));
        case.known = Known::default();
        assert_eq!(case.plan(), [], "nothing is decided from an incomplete list");
    }

    #[test]
    fn of_rms_that_share_a_storage_the_first_speaks_and_each_keeps_its_copies() {
        let first = Own { shares: true, ..own() };
        let second = Own { name: "rm2".parse().expect("valid"), ..first.clone() };
        let with_other = |case: Case, name: &str| case.other_rm(name, "http://127.0.0.1:2");
        let new = with_other(Case::registered(None, None), "rm2");
        assert_eq!(new.plan_as(&first).len(), 6, "it makes it, and says so");
        let new = with_other(Case::registered(None, None), "rm1");
        assert_eq!(new.plan_as(&second), [], "the second waits until it is asked");

        let ready = Case::registered(Some(repo(true, true, true)), None);
        assert_eq!(ready.plan_as(&first), [], "a copy is made when it is asked for");
        let half = OnDisk { hooks: false, ..on_disk() };
        let copy = with_other(Case::registered(Some(repo(true, true, true)), Some(half)), "rm1");
        assert_eq!(copy.plan_as(&second), [Step::InstallHooks]);

        let doomed = with_other(Case::registered(None, Some(on_disk())), "rm1").destroying();
        assert_eq!(doomed.plan_as(&second), [Step::Doom], "its rows are the first one's to remove");
        let doomed = with_other(Case::registered(None, Some(on_disk())), "rm2").destroying();
        assert_eq!(doomed.plan_as(&first), [Step::Doom, Step::Forget, Step::Remove]);
        let alone = Case::registered(Some(repo(true, false, false)), None);
        assert_eq!(alone.plan_as(&second).len(), 6, "it goes on where one that has gone left off");
    }

    #[test]
    fn of_several_rms_one_keeps_an_app() {
        let theirs = Repo { url: "http://127.0.0.1:2/a.git".into(), ..repo(true, true, true) };
        let case = Case::registered(Some(theirs.clone()), None).other_rm("rm2", "http://127.0.0.1:2");
        assert_eq!(case.plan(), []);
        let gone = Case::registered(Some(theirs), Some(on_disk()));
        assert_eq!(gone.plan(), [Step::Report(repo(true, true, true))]);
        let second = Case::registered(None, None).other_rm("rm0", "http://127.0.0.1:3");
        assert_eq!(second.plan(), [], "a new app is the first one's");
        // Its own row of a run before, at another port, is no other rm's.
        let old = Repo { url: "http://127.0.0.1:9/a.git".into(), ..repo(true, true, true) };
        let case = Case::registered(Some(old), Some(on_disk())).other_rm("rm1", "http://127.0.0.1:9");
        assert_eq!(case.plan(), [Step::Report(repo(true, true, true))]);
    }
}
