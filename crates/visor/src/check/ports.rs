//! The check of service ports: each service has one row, and each row a service.

use std::collections::BTreeMap;

use super::Findings;
use crate::{
    keys::Key,
    names::{AppName, ProcName, ServicePort},
    ports::{Denied, PORTS_IN_ROWS, PortBook},
    rows::RowKind,
    schema::{Port, Proc},
    snapshot::{AppView, Snapshot, Versioned},
    visor::Change,
};

pub(super) fn look(snapshot: &Snapshot, found: &mut Findings) {
    let book = PortBook::of(snapshot);
    rows(snapshot, book, found);
    // A row that cannot be read may be the missing one, and is told of by another rule.
    let is_whole = snapshot.unreadable_of(RowKind::Port).next().is_none();
    let services = book.services();
    for (name, view) in &snapshot.apps {
        if view.app.as_ref().is_none_or(|app| app.destroying) {
            continue;
        }
        for (proc, row) in &view.procs {
            match book.given(name, proc) {
                Some(port) => otherwise(snapshot, name, proc, row, port, found),
                None if is_whole => {
                    let denied =
                        services.get(&(name.clone(), proc.clone())).and_then(|port| port.clone().err());
                    missing(snapshot, name, view, proc, denied, found);
                }
                None => {}
            }
        }
    }
}

fn missing(
    snapshot: &Snapshot,
    name: &AppName,
    view: &AppView,
    proc: &ProcName,
    denied: Option<Denied>,
    found: &mut Findings,
) {
    let key = Key::Proc(name.clone(), proc.clone());
    if PortBook::of(snapshot).is_strict() {
        let remedy = format!("push app {name} again, with {proc} in its Procfile: that gives it one");
        found.tell(&key, "port-missing", "bazooka-rm has given it no port, so no proxy opens one", remedy);
    } else if PortBook::is_registered(view, proc) {
        // Beside rms of the release before alone, nobody writes the row.
        if snapshot.rms.values().any(|rm| rm.schema.is_some_and(|version| version >= PORTS_IN_ROWS)) {
            let what = "its port has no row under ports/, as of an earlier release";
            found.tell(&key, "port-missing", what, "look at the log of bazooka-rm: it should write the row");
            found.passes();
        }
    } else if let Some(denied) = denied {
        let remedy = format!("push app {name} with {proc} in its Procfile, or delete the row with etcdctl");
        found.tell(&key, "port-shared", format!("{denied}, so no proxy opens it for {name}/{proc}"), remedy);
    }
}

/// Finds a proc whose row names a port that is not its own. Proxies of the release before version 3 may obey it.
fn otherwise(
    snapshot: &Snapshot,
    name: &AppName,
    proc: &ProcName,
    row: &Versioned<Proc>,
    port: u16,
    found: &mut Findings,
) {
    if row.port == port {
        return;
    }
    let (key, given) = (Key::Proc(name.clone(), proc.clone()), Key::Port(ServicePort(port)));
    let after = Proc { port, ..row.value.clone() };
    let change = Change::new()
        .as_read(&key, Some(row))
        .as_read(&given, snapshot.ports.get(&ServicePort(port)))
        .put(&key, &after);
    let what = format!("it names port {}, and its service has {port}", row.port);
    found.mend(&key, "port-otherwise", what, format!("write {port}, as it was registered"), change);
}

/// Finds rows of services that are gone, and second rows of one service.
fn rows(snapshot: &Snapshot, book: PortBook<'_>, found: &mut Findings) {
    let mut of: BTreeMap<(&AppName, &ProcName), BTreeMap<ServicePort, &Versioned<Port>>> = BTreeMap::new();
    for (port, row) in snapshot.ports.iter().filter(|(_, row)| row.freed_at.is_none()) {
        let (key, app) = (Key::Port(*port), Key::App(row.app.clone()));
        if book.is_in_force(row) {
            of.entry((&row.app, &row.proc)).or_default().insert(*port, row);
        } else if book.is_gone(row) {
            let own = snapshot.apps.get(&row.app).and_then(|view| view.app.as_ref());
            let change = Change::new().as_read(&app, own).as_read(&key, Some(row)).delete(&key);
            let what = format!("it is given to {}/{}, and that app isn't there", row.app, row.proc);
            found.mend(&key, "port-of-nothing", what, "delete it", change);
            found.passes();
        }
    }
    for ((app, proc), rows) in of.into_iter().filter(|(_, rows)| rows.len() > 1) {
        let kept = book.given(app, proc).map(ServicePort);
        for (port, row) in rows.into_iter().filter(|(port, _)| Some(*port) != kept) {
            let key = Key::Port(port);
            let what = format!("{app}/{proc} has another port, too");
            let change = Change::new().as_read(&key, Some(row)).delete(&key);
            found.mend(&key, "port-of-two", what, "delete it: no proxy opens it", change);
        }
    }
}
