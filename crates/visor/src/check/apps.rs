//! Checks of an app's own rows: everything that head, releases, formation and the rest refer to must exist.

use super::{Findings, is_unreadable};
use crate::{
    keys::Key,
    names::AppName,
    quota::{self, Bounds},
    rows::WithoutApp,
    schema::{Formation, Promoter, Release, ReleaseStatus},
    settings,
    snapshot::{AppView, Snapshot},
    transitions::{envs::EMPTY_ENV, releases::failure},
    visor::Change,
};

pub(super) fn look(snapshot: &Snapshot, found: &mut Findings) {
    for (name, view) in &snapshot.apps {
        if view.app.is_some() {
            releases(snapshot, name, view, found);
            trial(snapshot, name, view, found);
            formation(snapshot, name, view, found);
            settings(name, view, found);
            quota(snapshot, name, view, found);
            repository(name, view, found);
        } else if !is_unreadable(snapshot, &Key::App(name.clone())) {
            orphans(snapshot, name, view, found);
        }
        wraps(snapshot, name, view, found);
    }
    for (domain, record) in &snapshot.domains {
        let app = Key::App(record.app.clone());
        if !is_there(snapshot, &record.app) && !is_unreadable(snapshot, &app) {
            let key = Key::Domain(domain.clone());
            let change = Change::new().absent(&app).as_read(&key, Some(record)).delete(&key);
            let what = format!("it leads to app '{}', which isn't there", record.app);
            found.mend(&key, "domain-without-app", what, "delete it", change);
        }
    }
}

fn is_there(snapshot: &Snapshot, app: &AppName) -> bool {
    snapshot.apps.get(app).is_some_and(|view| view.app.is_some())
}

/// Finds rows of an app without its own row, which is made first and deleted last.
fn orphans(snapshot: &Snapshot, name: &AppName, view: &AppView, found: &mut Findings) {
    let own = Key::App(name.clone());
    let of = |what| view.rows(name, move |kind| kind.row().without_app == what);
    let has_substance = !of(WithoutApp::Substance).is_empty()
        || snapshot.hosts.values().any(|host| host.assigned.values().any(|a| a.app == *name));
    if has_substance {
        let what = "rows of this app are there, and its own isn't: nothing of it is started or stopped";
        let remedy = format!(
            "`bazooka init {name}` registers it again with what there is; `bazooka destroy -a {name}` then takes it down"
        );
        found.tell(&own, "app-missing", what, remedy);
        return;
    }
    for (key, row) in of(WithoutApp::Delete) {
        let change = Change::new().absent(&own).unchanged(&key, row.mod_revision).delete(&key);
        found.mend(&key, "row-of-no-app", format!("there is no app '{name}'"), "delete it", change);
    }
    for (key, _) in of(WithoutApp::Destroy) {
        let remedy = format!("`bazooka init {name}` and `bazooka destroy -a {name}` take it away");
        found.tell(&key, "row-of-no-app", format!("there is no app '{name}'"), remedy);
    }
}

fn releases(snapshot: &Snapshot, name: &AppName, view: &AppView, found: &mut Findings) {
    for (id, row) in &view.releases {
        let key = Key::Release(name.clone(), *id);
        let rev = Key::Rev(name.clone(), row.rev.clone());
        if !view.revs.contains_key(&row.rev) && !is_unreadable(snapshot, &rev) {
            let what = format!("its rev {} isn't registered", row.rev.short());
            found.tell(&key, "release-without-rev", what, "push that commit again: that registers it");
        }
        let env = Key::Env(name.clone(), row.env);
        if row.env != EMPTY_ENV && !view.envs.contains_key(&row.env) && !is_unreadable(snapshot, &env) {
            let what = format!("its config vars {} aren't there", row.env);
            let remedy =
                format!("`bazooka rollback -a {name}` to a release whose vars are there, and set them anew");
            found.tell(&key, "release-without-env", what, remedy);
        }
    }
    let Some(head) = &view.head else { return };
    let (key, release) = (Key::Head(name.clone()), Key::Release(name.clone(), head.release));
    match view.releases.get(&head.release) {
        None if is_unreadable(snapshot, &release) => {}
        None => {
            let what = format!("{} isn't there: the app is left alone", head.release);
            let remedy =
                format!("write {release} as it was in the last backup, with etcdctl, or destroy the app");
            found.tell(&key, "head-without-release", what, remedy);
        }
        Some(row) if row.status != ReleaseStatus::Released => {
            let after = Release { status: ReleaseStatus::Released, cause: None, ..row.value.clone() };
            let change =
                Change::new().as_read(&key, Some(head)).as_read(&release, Some(row)).put(&release, &after);
            let what = format!("{} is head, and isn't said to be released", head.release);
            found.mend(&release, "head-not-released", what, "say that it is", change);
        }
        Some(_) => {}
    }
}

fn trial(snapshot: &Snapshot, name: &AppName, view: &AppView, found: &mut Findings) {
    let Some(trial) = &view.trial else { return };
    let (key, release) = (Key::Trial(name.clone()), Key::Release(name.clone(), trial.release));
    let end = || Change::new().as_read(&key, Some(trial)).delete(&key);
    match view.releases.get(&trial.release) {
        None if is_unreadable(snapshot, &release) => {}
        None => {
            let what = format!("{} isn't there: the app is left alone", trial.release);
            found.mend(&key, "trial-without-release", what, "end the trial", end().absent(&release));
        }
        Some(row) if !matches!(row.status, ReleaseStatus::Trying | ReleaseStatus::Verified) => {
            let what = format!("{} isn't being tried any more", trial.release);
            found.mend(&key, "trial-over", what, "end the trial", end().as_read(&release, Some(row)));
        }
        Some(row) if trial.promote == Promoter::Pusher && trial.lease.is_none() => {
            let change = failure(name, view, trial.release, row, "the push that tried it has ended");
            let what = "it is a push's, and has no lease: it would never end";
            found.mend(&key, "trial-without-lease", what, "fail the release", change);
        }
        Some(_) => {}
    }
}

fn formation(snapshot: &Snapshot, name: &AppName, view: &AppView, found: &mut Findings) {
    for (proc, row) in &view.formation {
        let (key, service) =
            (Key::Formation(name.clone(), proc.clone()), Key::Proc(name.clone(), proc.clone()));
        if !view.procs.contains_key(proc) && !is_unreadable(snapshot, &service) {
            let what = format!("the app has no proc '{proc}'");
            let runs = view.instances.values().any(|instance| instance.proc == *proc);
            if runs || !view.wanted(proc).is_empty() {
                found.tell(&key, "formation-without-proc", what, "push again: that registers the proc");
            } else {
                let change = Change::new().absent(&service).as_read(&key, Some(row)).delete(&key);
                found.mend(
                    &key,
                    "formation-without-proc",
                    what,
                    "delete it: nothing of it is wanted",
                    change,
                );
            }
        }
        let missing = |id| {
            !view.releases.contains_key(id) && !is_unreadable(snapshot, &Key::Release(name.clone(), *id))
        };
        let gone: Vec<_> = row.beside.keys().filter(|id| missing(id)).copied().collect();
        if !gone.is_empty() {
            let mut after: Formation = row.value.clone();
            let told: Vec<String> = gone.iter().map(ToString::to_string).collect();
            let mut change = Change::new().as_read(&key, Some(row));
            for id in gone {
                after.beside.remove(&id);
                after.weights.remove(&id);
                change = change.absent(&Key::Release(name.clone(), id));
            }
            let what = format!("it wants {} beside head, and there is no such release", told.join(", "));
            let remedy = "take that out: nothing could be started of it";
            found.mend(&key, "beside-without-release", what, remedy, change.put(&key, &after));
        }
    }
    for (proc, row) in &view.pending {
        if !view.formation.contains_key(proc)
            && !is_unreadable(snapshot, &Key::Formation(name.clone(), proc.clone()))
        {
            let key = Key::Pending(name.clone(), proc.clone());
            let change = Change::new().as_read(&key, Some(row)).delete(&key);
            found.mend(&key, "pending-of-nothing", "nothing of that proc is wanted", "delete it", change);
            found.passes();
        }
    }
}

/// Finds settings with a value that `bazooka procs set` would refuse.
fn settings(name: &AppName, view: &AppView, found: &mut Findings) {
    for (proc, row) in &view.procs {
        for setting in settings::ALL {
            let Some(value) = setting.out_of_bounds(row) else { continue };
            let what = format!("its {} is {value}, which is out of bounds", setting.name);
            let remedy = format!("bazooka procs set -a {name} {proc} --{} default", setting.name);
            found.tell(&Key::Proc(name.clone(), proc.clone()), "setting-out-of-bounds", what, remedy);
        }
    }
}

/// Finds an app that takes more than it may. What its people write past `bazooka`, nobody refuses.
fn quota(snapshot: &Snapshot, name: &AppName, view: &AppView, found: &mut Findings) {
    let bounds = Bounds::of(snapshot.rms.values().map(|rm| &rm.value));
    let (used, releases) = (quota::bytes(view), view.releases.len());
    let what = if used > bounds.bytes {
        format!("it takes {} of the {} that it may", quota::mebibytes(used), quota::mebibytes(bounds.bytes))
    } else if releases > quota::MOST_RELEASES {
        format!("it has {releases} releases, of {} at most", quota::MOST_RELEASES)
    } else {
        return;
    };
    let remedy = "a bazooka-rm prunes it within some minutes; if not, make its config vars smaller, or give it more: \
                  bazooka-rm --app-bytes";
    found.tell(&Key::App(name.clone()), "app-over-quota", what, remedy);
    found.passes();
}

fn repository(name: &AppName, view: &AppView, found: &mut Findings) {
    let Some(app) = &view.app else { return };
    let repo = view.repo.as_ref().map(|repo| (Key::Repo(name.clone()), &repo.token));
    let stored = view.stored.as_ref().map(|stored| (Key::Stored(name.clone()), &stored.token));
    for (key, token) in repo.into_iter().chain(stored) {
        if !token.is_empty() && *token != app.token {
            let what = "it belongs to an earlier app of this name";
            found.tell(&key, "repository-of-another", what, format!("`bazooka init {name}` sets it up anew"));
        }
    }
}

fn wraps(snapshot: &Snapshot, name: &AppName, view: &AppView, found: &mut Findings) {
    for (env, row) in &view.earlier_wraps {
        let of = Key::Env(name.clone(), *env);
        if !view.envs.contains_key(env) && !is_unreadable(snapshot, &of) {
            let key = Key::EarlierWraps(name.clone(), *env);
            let change = Change::new().absent(&of).as_read(&key, Some(row)).delete(&key);
            found.mend(&key, "wraps-of-nothing", "there are no such config vars", "delete it", change);
        }
    }
}
