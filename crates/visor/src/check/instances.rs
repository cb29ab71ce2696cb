//! Checks of instances: each is assigned once, is in its app's index, and no other has a status.

use super::{Findings, is_unreadable};
use crate::{
    keys::Key,
    names::{HostName, InstanceId},
    schema::{Assignment, Extra, Instance},
    snapshot::{Snapshot, Versioned},
    transitions::{envs::in_use, placement::ending_service},
    visor::Change,
};

pub(super) fn look(snapshot: &Snapshot, found: &mut Findings) {
    for (host, view) in &snapshot.hosts {
        for (id, assigned) in &view.assigned {
            assignment(snapshot, host, *id, assigned, found);
        }
        for (id, status) in &view.status {
            let (key, assigned) = (Key::Status(host.clone(), *id), Key::Assigned(host.clone(), *id));
            if !view.assigned.contains_key(id) && !is_unreadable(snapshot, &assigned) {
                let change = Change::new().absent(&assigned).as_read(&key, Some(status)).delete(&key);
                let what = format!("instance {id} isn't assigned to {host}");
                found.mend(&key, "status-without-assignment", what, "delete it", change);
            }
        }
    }
    for (name, view) in &snapshot.apps {
        for (id, row) in &view.instances {
            let (key, assigned) = (Key::Instance(name.clone(), *id), Key::Assigned(row.host.clone(), *id));
            let is_assigned =
                snapshot.hosts.get(&row.host).is_some_and(|host| host.assigned.contains_key(id));
            if !is_assigned && !is_unreadable(snapshot, &assigned) {
                let change = Change::new().absent(&assigned).as_read(&key, Some(row)).delete(&key);
                let what = format!("it isn't assigned to {}, so it doesn't run", row.host);
                found.mend(&key, "index-without-assignment", what, "delete it", change);
            }
        }
        let in_use = in_use(view);
        for ((host, env), row) in &view.handed {
            // Hosts hold an env in use also where nothing runs with it.
            let used = in_use.contains(env)
                || snapshot.hosts.get(host).is_some_and(|view| {
                    view.assigned.values().any(|assigned| assigned.app == *name && assigned.env == *env)
                });
            if !used {
                let key = Key::Handed(host.clone(), name.clone(), *env);
                let change = Change::new().as_read(&key, Some(row)).delete(&key);
                found.mend(
                    &key,
                    "sealed-of-nothing",
                    "nothing runs with it, nor would a rollback",
                    "delete it",
                    change,
                );
                found.passes();
            }
        }
        for ((source, id), row) in &view.serving {
            let waits = snapshot.hosts.get(&row.to).is_some_and(|view| view.assigned.contains_key(id));
            if !waits && !is_unreadable(snapshot, &Key::Assigned(row.to.clone(), *id)) {
                let change = ending_service(source, name, *id, row);
                let what = format!("instance {id} isn't assigned to {}", row.to);
                let key = Key::Serving(source.clone(), name.clone(), *id);
                found.mend(&key, "serving-of-nothing", what, "delete it", change);
                found.passes();
            }
        }
    }
}

fn assignment(
    snapshot: &Snapshot,
    host: &HostName,
    id: InstanceId,
    assigned: &Versioned<Assignment>,
    found: &mut Findings,
) {
    let (key, index) = (Key::Assigned(host.clone(), id), Key::Instance(assigned.app.clone(), id));
    let view = snapshot.apps.get(&assigned.app);
    let own = Key::App(assigned.app.clone());
    if view.is_none_or(|view| view.app.is_none()) && !is_unreadable(snapshot, &own) {
        let status = snapshot.hosts.get(host).and_then(|host| host.status.get(&id));
        let what = format!("its app '{}' isn't there", assigned.app);
        if let Some(status) = status.filter(|status| status.state.is_final()) {
            let said = Key::Status(host.clone(), id);
            let row = view.and_then(|view| view.instances.get(&id));
            let change = Change::new()
                .absent(&own)
                .as_read(&key, Some(assigned))
                .as_read(&said, Some(status))
                .as_read(&index, row)
                .delete(&key)
                .delete(&said)
                .delete(&index);
            found.mend(&key, "instance-of-no-app", what, "delete its rows: it has ended", change);
        } else {
            let remedy = format!(
                "it runs on; `bazooka init {0}` registers the app again, `bazooka destroy -a {0}` then ends it",
                assigned.app
            );
            found.tell(&key, "instance-of-no-app", what, remedy);
        }
        return;
    }
    let release = Key::Release(assigned.app.clone(), assigned.release);
    if view.is_some_and(|view| !view.releases.contains_key(&assigned.release))
        && !is_unreadable(snapshot, &release)
    {
        let what = format!("its release {} isn't there", assigned.release);
        found.tell(
            &key,
            "instance-of-no-release",
            what,
            "it is replaced when head has taken over; nothing else",
        );
    }
    let placed = |before: Option<&Versioned<Instance>>| Instance {
        host: host.clone(),
        proc: assigned.proc.clone(),
        release: assigned.release,
        rev: assigned.rev.clone(),
        index: assigned.index,
        placed_at: before.map_or(jiff::Timestamp::UNIX_EPOCH, |row| row.placed_at),
        reason: before.map_or_else(|| "found assigned".into(), |row| row.reason.clone()),
        extra: before.map_or_else(Extra::new, |row| row.extra.clone()),
    };
    match view.and_then(|view| view.instances.get(&id)) {
        None if is_unreadable(snapshot, &index) => {}
        None => {
            let change =
                Change::new().absent(&index).as_read(&key, Some(assigned)).put(&index, &placed(None));
            let what = format!("{index} is missing: nobody sees that it runs");
            let remedy = "write it: the converger decides then whether it is wanted";
            found.mend(&key, "assignment-without-index", what, remedy, change);
        }
        Some(row) if row.host != *host => {
            let what = format!("{id} is assigned to {} too: it may run twice", row.host);
            let remedy = format!("delete {key} with etcdctl: its host ends it, and the other one stays");
            found.tell(&key, "assigned-twice", what, remedy);
        }
        Some(row) if row.value != placed(Some(row)) => {
            let change = Change::new()
                .as_read(&index, Some(row))
                .as_read(&key, Some(assigned))
                .put(&index, &placed(Some(row)));
            let what = format!("it doesn't say what {key} says");
            found.mend(&index, "index-differs", what, "write what its host was told", change);
        }
        Some(_) => {}
    }
}
