//! The check that the coordinator's rows fit together, and the repair of those that do not.
//!
//! Owns the invariants, as a pure function over a whole image. Each holds at every revision, because a transition is
//! one transaction. An edit by hand, a fault, or a backup of another time can break one. There are three kinds of
//! finding:
//!
//! - one that can be mended without ending or losing anything carries the guarded change that mends it;
//! - one that needs a decision says what a person should do;
//! - one that a converger clears up by itself is `passing`: it counts only if it is still there a while later.
//!
//! Submodules: `apps` checks an app's own rows, `instances` where instances are, `ports` which service has which port,
//! `presence` the leased rows.

mod apps;
mod instances;
mod ports;
mod presence;
pub mod space;
#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::{
    keys::{self, Key},
    ports::PortBook,
    rows::Unreadable,
    snapshot::Snapshot,
    store::{Entry, Image, Revision},
    visor::{Change, Result, Visor},
};

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The key that it concerns.
    pub key: String,
    /// The name of the broken invariant, which never changes.
    pub rule: &'static str,
    /// The fault in words.
    pub what: String,
    /// The remedy in words: [`Finding::mend`], if there is one, else a person's task.
    pub remedy: String,
    /// True if it can be mended here.
    pub mendable: bool,
    /// True if a working converger clears it up by itself.
    #[serde(skip)]
    pub passing: bool,
    /// The change that mends it, guarded on the rows in which it was found.
    #[serde(skip)]
    pub mend: Option<Change>,
}

/// All rows of a cluster, as they are checked.
#[derive(Clone, Debug, Default)]
pub struct Stock {
    /// The image.
    pub snapshot: Snapshot,
    /// The keys that this version does not know. They may be a newer version's.
    pub unknown: Vec<String>,
}

impl Stock {
    /// Builds the stock from all rows at one revision.
    pub fn of(entries: &[Entry], revision: Revision) -> Stock {
        let mut stock = Stock::default();
        entries.iter().for_each(|entry| stock.snapshot.put(entry));
        stock.snapshot.set_revision(revision);
        for entry in entries {
            if entry.key.parse::<Key>().is_err() {
                stock.unknown.push(entry.key.clone());
            }
        }
        stock
    }
}

impl Visor {
    /// Reads all rows.
    ///
    /// # Errors
    /// The store's.
    pub async fn stock(&self) -> Result<Stock> {
        let (entries, revision) = self.entries(keys::everything()).await?;
        Ok(Stock::of(&entries, revision))
    }
}

/// Returns every broken invariant, by key.
pub fn findings(snapshot: &Snapshot) -> Vec<Finding> {
    let mut found = Findings(Vec::new());
    unreadable(snapshot, &mut found);
    let empty = Snapshot { revision: snapshot.revision, ..Snapshot::default() };
    if snapshot.schema.is_none() && !is_unreadable(snapshot, &Key::Schema) && *snapshot != empty {
        found.tell(
            &Key::Schema,
            "schema-missing",
            "there are rows, and no schema: nothing can be written",
            "start bazooka-rm: a daemon writes it",
        );
    }
    bounds(snapshot, &mut found);
    counters(snapshot, &mut found);
    apps::look(snapshot, &mut found);
    instances::look(snapshot, &mut found);
    ports::look(snapshot, &mut found);
    presence::look(snapshot, &mut found);
    let mut all = found.0;
    all.sort_by(|a, b| (&a.key, a.rule).cmp(&(&b.key, b.rule)));
    all
}

/// Returns those of `later` that `earlier` had too, or that never pass by themselves.
pub fn lasting(earlier: &[Finding], later: Vec<Finding>) -> Vec<Finding> {
    let was = |one: &Finding| earlier.iter().any(|other| (&other.key, other.rule) == (&one.key, one.rule));
    later.into_iter().filter(|one| !one.passing || was(one)).collect()
}

struct Findings(Vec<Finding>);

impl Findings {
    /// Adds a finding that a person must resolve.
    fn tell(&mut self, key: &Key, rule: &'static str, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(key.to_string(), rule, what.into(), remedy.into(), None);
    }

    /// Adds a finding that can be mended.
    fn mend(
        &mut self,
        key: &Key,
        rule: &'static str,
        what: impl Into<String>,
        remedy: impl Into<String>,
        change: Change,
    ) {
        self.add(key.to_string(), rule, what.into(), remedy.into(), Some(change));
    }

    /// Marks the last finding as one that a working converger clears up.
    fn passes(&mut self) {
        if let Some(last) = self.0.last_mut() {
            last.passing = true;
        }
    }

    fn add(&mut self, key: String, rule: &'static str, what: String, remedy: String, mend: Option<Change>) {
        let mendable = mend.is_some();
        self.0.push(Finding { key, rule, what, remedy, mendable, passing: false, mend });
    }
}

fn is_unreadable(snapshot: &Snapshot, key: &Key) -> bool {
    !snapshot.unreadable.is_empty() && snapshot.unreadable.contains_key(&key.to_string())
}

fn unreadable(snapshot: &Snapshot, found: &mut Findings) {
    for (name, why) in &snapshot.unreadable {
        let Ok(key) = name.parse::<Key>() else { continue };
        let what = format!("it can't be read: {why}");
        match key.row().unreadable {
            Unreadable::Useless => {
                // An unreadable value has no use; if a readable one replaces it meanwhile, deleting that does no harm
                // either.
                let change = Change::new().exists(&key).delete(&key);
                found.mend(&key, "unreadable", what, "delete it: nothing depends on it", change);
            }
            Unreadable::Rewritten => {
                found.tell(&key, "unreadable", what, "restart the daemon whose row it is: it writes it anew");
            }
            Unreadable::Restore => found.tell(
                &key,
                "unreadable",
                what,
                "write it as it was in the last backup, with etcdctl; meanwhile what it is about is left alone",
            ),
        }
    }
}

/// Finds values that count as their bounds, and hosts that say of themselves what their operator says otherwise.
fn bounds(snapshot: &Snapshot, found: &mut Findings) {
    for (name, out) in &snapshot.bounded {
        let Ok(key) = name.parse::<Key>() else { continue };
        let remedy = match &key {
            Key::Formation(app, proc) => format!("bazooka scale -a {app} -n N {proc}"),
            Key::Host(_) => "start its bazooka-pm with other --slots and --memory".to_owned(),
            _ => "look at the host that writes it: a bazooka-pm writes no such row".to_owned(),
        };
        found.tell(&key, "out-of-bounds", out.line(), remedy);
    }
    for (name, view) in &snapshot.hosts {
        let (Some(said), Some(host)) = (&view.said, &view.host) else { continue };
        let what = if said.zone != host.zone {
            format!("it says that it stands in zone {}, and its operator says {}", said.zone, host.zone)
        } else if said.address != host.address {
            format!("it says that its address is {}, and its operator says {}", said.address, host.address)
        } else {
            continue;
        };
        let remedy = format!(
            "its operator's word counts; if the host is right: bazooka hosts bound {name} --zone own --address own"
        );
        found.tell(&Key::Host(name.clone()), "host-says-otherwise", what, remedy);
    }
}

fn counters(snapshot: &Snapshot, found: &mut Findings) {
    let of_hosts = snapshot.hosts.values().flat_map(|view| view.assigned.keys().chain(view.status.keys()));
    let of_apps = snapshot
        .apps
        .values()
        .flat_map(|view| view.instances.keys().chain(view.history.keys().map(|(_, id)| id)));
    let last_id = of_hosts.chain(of_apps).map(|id| id.0).max();
    // Rows give ports. Only an earlier release takes the one after the counter unseen.
    let ports = snapshot.apps.values().flat_map(|view| view.procs.values());
    let ports = ports.filter(|_| !PortBook::of(snapshot).is_strict());
    let last_port = ports.map(|proc| u64::from(proc.port)).max();
    for (key, counter, last, rule, what) in [
        (Key::InstanceCounter, &snapshot.instance_counter, last_id, "counter-behind", "instance"),
        (Key::PortCounter, &snapshot.port_counter, last_port, "port-counter-behind", "service's port"),
    ] {
        let Some(last) = last.filter(|_| !is_unreadable(snapshot, &key)) else { continue };
        let value = counter.as_ref().map_or(0, |counter| counter.value);
        if value < last {
            let change = Change::new().as_read(&key, counter.as_ref()).put(&key, &last);
            let told =
                format!("it is at {value}, and there is a {what} {last}: the next would be given twice");
            found.mend(&key, rule, told, format!("raise it to {last}"), change);
        }
    }
}
