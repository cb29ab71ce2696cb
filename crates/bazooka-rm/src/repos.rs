//! Apps' repositories: from the coordinator's rows to the disk.
//!
//! Owns the plan (pure), the loop that carries it out, and the repositories themselves behind the trait
//! [`origin::Origin`]. Removes a repository only if its app is known to have been
//! destroyed. A repository whose app is merely missing from the coordinator stays: the coordinator may have lost data,
//! and a repository can't be made again.
//!
//! ```text
//! absent ─create─▶ created ─configure─▶ configured ─install hooks─▶ ready      each step reported in repos/A
//!   ▲                                                                │
//!   └──remove── forgotten ◀─forget (nothing runs)── doomed ◀─doom────┘  (the app is being destroyed)
//! ```

pub mod config;
pub mod disk;
pub mod local;
pub mod origin;
mod run;
pub mod shared;
#[cfg(test)]
pub(crate) mod view_fixture;

use std::{collections::BTreeMap, path::Path};

use visor::{
    names::{AppName, HostName},
    schema::{App, Extra, Repo},
    snapshot::AppView,
};

pub use run::Repositories;

use crate::apps::Known;

/// The state of a repository on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnDisk {
    /// The token of the registration that the repository belongs to; empty if unknown.
    pub token: String,
    /// True if the configuration is correct.
    pub configured: bool,
    /// True if the hooks are in place.
    pub hooks: bool,
    /// True if the app is being destroyed.
    pub doomed: bool,
}

/// A step towards the wanted state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make a bare repository for this registration.
    Create {
        /// The registration's token.
        token: String,
    },
    /// Write the repository's configuration.
    Configure,
    /// Put the hooks in place.
    InstallHooks,
    /// Write the progress to the coordinator (`repos/A`).
    Report(Repo),
    /// Mark on disk that the app is being destroyed.
    Doom,
    /// Delete the app's rows if none of its instances is left.
    Forget,
    /// Remove the repository with the app's caches and build folder.
    Remove,
}

/// This rm's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// The rm's name.
    pub name: HostName,
    /// A random id that tells this process from earlier ones of the same name.
    pub process: String,
    /// The endpoint's base URL as others reach it.
    pub url: String,
    /// The base URL for pushes.
    pub git_url: String,
}

impl Own {
    /// Returns the URL to which an app is pushed.
    pub fn repo_url(&self, app: &AppName) -> String {
        format!("{}/{app}.git", self.git_url)
    }
}

/// A registered app, with everything that its steps depend on.
pub struct Case<'a> {
    /// The app's name.
    pub app: &'a AppName,
    /// The app's rows.
    pub view: &'a AppView,
    /// The app's own row.
    pub row: &'a App,
    /// The repository on this rm's disk.
    pub disk: Option<&'a OnDisk>,
    /// All apps and rms.
    pub known: &'a Known,
    /// This rm.
    pub own: &'a Own,
}

/// Returns the steps, in order, for each app that needs any; `steps` returns those of a registered app. They follow from
/// what is observed, so an rm that dies between two steps goes on from there. An incomplete image gives no steps.
pub fn plan(
    known: &Known,
    disk: &BTreeMap<AppName, OnDisk>,
    own: &Own,
    steps: impl Fn(&Case<'_>) -> Vec<Step>,
) -> BTreeMap<AppName, Vec<Step>> {
    let mut plan = BTreeMap::new();
    if !known.complete {
        return plan;
    }
    for (app, view) in &known.apps {
        let Some(row) = view.app.as_ref() else { continue };
        let steps = steps(&Case { app, view, row, disk: disk.get(app), known, own });
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

/// Returns an app's steps where rms share nothing: one of them keeps the app's repository.
pub fn sole(case: &Case<'_>) -> Vec<Step> {
    let Case { app, view, row, disk, known, own } = *case;
    let repo = view.repo.as_ref().map(|repo| &repo.value);
    if !is_ours(app, repo, &row.token, disk.is_some(), known, own) {
        Vec::new()
    } else if row.destroying {
        destroying(disk, view.instances.is_empty())
    } else {
        wanted(app, &row.token, repo, disk, own)
    }
}

/// Returns an app's steps where rms share a file storage. The first rm by name reports for all. Each rm keeps the copies
/// that it has, and makes others on request.
pub fn shared_steps(case: &Case<'_>) -> Vec<Step> {
    let Case { app, view, row, disk, known, own } = *case;
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
        // The repository belongs to an earlier registration of the name, or is marked for removal.
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

/// True if this rm keeps the app's repository. Of several rms, the one whose URL is in the row keeps it. For a new app,
/// or if that rm has gone, an rm that has the repository on disk takes it, or else the first rm by name.
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

/// Returns the app whose repository has this folder name, if it is one.
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
        Own { name: "rm1".parse().expect("valid"), process: "p".into(), git_url: url.clone(), url }
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
            plan(&self.known, &self.disk, &own(), sole).remove(&app()).unwrap_or_default()
        }

        fn plan_shared(&self, own: &Own) -> Vec<Step> {
            plan(&self.known, &self.disk, own, shared_steps).remove(&app()).unwrap_or_default()
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
        // A row of an earlier registration doesn't count for this one.
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
        // An rm died between the deletion of the rows and the removal of the repository.
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
        let first = own();
        let second = Own { name: "rm2".parse().expect("valid"), ..first.clone() };
        let with_other = |case: Case, name: &str| case.other_rm(name, "http://127.0.0.1:2");
        let new = with_other(Case::registered(None, None), "rm2");
        assert_eq!(new.plan_shared(&first).len(), 6, "it makes it, and says so");
        let new = with_other(Case::registered(None, None), "rm1");
        assert_eq!(new.plan_shared(&second), [], "the second waits until it is asked");

        let ready = Case::registered(Some(repo(true, true, true)), None);
        assert_eq!(ready.plan_shared(&first), [], "a copy is made when it is asked for");
        let half = OnDisk { hooks: false, ..on_disk() };
        let copy = with_other(Case::registered(Some(repo(true, true, true)), Some(half)), "rm1");
        assert_eq!(copy.plan_shared(&second), [Step::InstallHooks]);

        let doomed = with_other(Case::registered(None, Some(on_disk())), "rm1").destroying();
        assert_eq!(doomed.plan_shared(&second), [Step::Doom], "its rows are the first one's to remove");
        let doomed = with_other(Case::registered(None, Some(on_disk())), "rm2").destroying();
        assert_eq!(doomed.plan_shared(&first), [Step::Doom, Step::Forget, Step::Remove]);
        let alone = Case::registered(Some(repo(true, false, false)), None);
        assert_eq!(alone.plan_shared(&second).len(), 6, "it goes on where one that has gone left off");
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
        // The row was written by an earlier run of this rm at another port, not by another rm.
        let old = Repo { url: "http://127.0.0.1:9/a.git".into(), ..repo(true, true, true) };
        let case = Case::registered(Some(old), Some(on_disk())).other_rm("rm1", "http://127.0.0.1:9");
        assert_eq!(case.plan(), [Step::Report(repo(true, true, true))]);
    }
}
