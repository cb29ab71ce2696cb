//! The migration from one schema version to the next: when it may happen, what it waits for, and who is shut out.
//!
//! Owns the order, as a pure function of what the coordinator has. Each step leaves a working cluster, so that a
//! migration may stop anywhere and be run again; a finished step is not repeated. The owners of rows in the old form
//! rewrite them: an rm seals what version 1 left in plain text, writes the rows of ports that version 2 left out, and binds
//! the config vars of version 3 to the registration of their app.
//!
//! ```text
//! upgraded ──min_writer raised──▶ shut to older writers ──no row of the old form is left──▶ version, min_reader raised
//! ```

use serde::Serialize;

use crate::{
    keys::Key,
    ports::PortBook,
    schema::{Env, SCHEMA_VERSION, Schema},
    seal::Sealed,
    snapshot::{Snapshot, Versioned},
    visor::Change,
};

/// The next step of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The migration is complete.
    Done,
    /// The cluster is of a later version than this build; a later build must migrate it.
    Later {
        /// The cluster's version.
        version: u32,
    },
    /// These parts run builds of an older version and would be shut out.
    Older(Vec<Older>),
    /// The next write shuts out older writers.
    ShutOut(Raise),
    /// These rows are still in the old form, by key; their owners rewrite them.
    Rewriting(Vec<String>),
    /// No row of the old form is left: the next write raises the version and shuts out older readers.
    Finish(Raise),
}

/// A part that runs a build of an older version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Older {
    /// The part: `host app1`, `proxy p1`, `rm r1`.
    pub part: String,
    /// The version of its build.
    pub version: String,
}

/// The new schema row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raise {
    before: Versioned<Schema>,
    after: Schema,
}

impl Raise {
    /// Returns the write, guarded on the row that it was decided from.
    pub fn change(&self) -> Change {
        Change::new().as_read(&Key::Schema, Some(&self.before)).put(&Key::Schema, &self.after)
    }
}

/// Returns the next step for a cluster, given an image of all its rows; None if it has no schema.
pub fn next(snapshot: &Snapshot) -> Option<Next> {
    let before = snapshot.schema.clone()?;
    let schema = &before.value;
    if schema.version > SCHEMA_VERSION {
        return Some(Next::Later { version: schema.version });
    }
    let is_shut = schema.min_writer >= SCHEMA_VERSION;
    if is_shut && schema.version == SCHEMA_VERSION && schema.min_reader >= SCHEMA_VERSION {
        return Some(Next::Done);
    }
    let older = older(snapshot);
    if !older.is_empty() {
        return Some(Next::Older(older));
    }
    if !is_shut {
        let after = Schema { min_writer: SCHEMA_VERSION, ..schema.clone() };
        return Some(Next::ShutOut(Raise { before, after }));
    }
    let left = of_old_form(snapshot);
    if !left.is_empty() {
        return Some(Next::Rewriting(left));
    }
    let after = Schema { version: SCHEMA_VERSION, min_reader: SCHEMA_VERSION, ..schema.clone() };
    Some(Next::Finish(Raise { before, after }))
}

/// Returns the parts with older builds.
///
/// A converger is unknown before it is elected; an older one can no longer be elected then.
fn older(snapshot: &Snapshot) -> Vec<Older> {
    // The first builds of version 2 did not report a schema version. They are recognised by what version 1 lacks: hosts
    // and rms by a key to open config vars, proxies by a zone.
    let is_older =
        |says: Option<u32>, is_second: bool| says.unwrap_or(1 + u32::from(is_second)) < SCHEMA_VERSION;
    let hosts = snapshot.hosts.iter().filter_map(|(name, view)| {
        let host = view.host.as_ref()?;
        let older = is_older(host.schema, host.seal_key.is_some());
        older.then(|| Older { part: format!("host {name}"), version: host.version.clone() })
    });
    let proxies = snapshot.proxies.iter().filter_map(|(name, row)| {
        let older = is_older(row.schema, row.zone.is_some());
        older.then(|| Older { part: format!("proxy {name}"), version: row.version.clone() })
    });
    let rms = snapshot.rms.iter().filter_map(|(name, row)| {
        let older = is_older(row.schema, row.seal_key.is_some());
        older.then(|| Older { part: format!("rm {name}"), version: row.version.clone() })
    });
    hosts.chain(proxies).chain(rms).collect()
}

/// Returns the keys of rows in the old form: config vars that are not bound to their app's registration, their wraps, and
/// procs whose ports have no rows.
fn of_old_form(snapshot: &Snapshot) -> Vec<String> {
    let envs = snapshot.apps.iter().filter(|(_, view)| view.app.is_some()).flat_map(|(app, view)| {
        let is_bound = |row: &Env| row.sealed.as_ref().is_some_and(Sealed::is_of_registration);
        let unbound = view.envs.iter().filter(move |(_, row)| !is_bound(row));
        let envs = unbound.map(|(env, _)| Key::Env(app.clone(), *env));
        envs.chain(view.earlier_wraps.keys().map(|env| Key::EarlierWraps(app.clone(), *env)))
    });
    let ports = PortBook::of(snapshot).not_given().into_iter();
    let ports = ports.map(|(app, proc)| Key::Proc(app, proc));
    envs.chain(ports).map(|key| key.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        schema::{App, Env, Extra, Rm, Wraps},
        snapshot::AppView,
    };

    fn row<T>(value: T) -> Versioned<T> {
        Versioned { value, create_revision: 1, mod_revision: 7, lease: None }
    }

    fn cluster(version: u32, min_reader: u32, min_writer: u32) -> Snapshot {
        let value = Schema { version, min_reader, min_writer, ..Schema::default() };
        Snapshot { schema: Some(row(value)), ..Snapshot::default() }
    }

    fn with_rm(mut snapshot: Snapshot, schema: Option<u32>) -> Snapshot {
        snapshot.rms.insert("r1".parse().expect("a name"), row(Rm { schema, ..Rm::at("http://r1") }));
        snapshot
    }

    fn app() -> App {
        let created_at = jiff::Timestamp::UNIX_EPOCH;
        App { owner: "ada".into(), created_at, token: "t".into(), destroying: false, extra: Extra::new() }
    }

    fn with_plain(mut snapshot: Snapshot) -> Snapshot {
        let at = jiff::Timestamp::UNIX_EPOCH;
        let vars = Some(crate::seal::Vars::default());
        let env = row(Env {
            sealed: None,
            vars,
            links: Default::default(),
            by: "ada".into(),
            at,
            extra: Extra::new(),
        });
        let envs = [("e1".parse().expect("a ref"), env)].into();
        let view = AppView { app: Some(row(app())), envs, ..AppView::default() };
        snapshot.apps.insert("a".parse().expect("a name"), view);
        snapshot
    }

    fn mins(next: Option<Next>) -> (u32, u32, u32) {
        match next {
            Some(Next::ShutOut(raise) | Next::Finish(raise)) => {
                assert_eq!(raise.before.mod_revision, 7, "it is guarded on what was read");
                (raise.after.version, raise.after.min_reader, raise.after.min_writer)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_goes_from_step_to_step_and_is_done_once() {
        assert_eq!(next(&Snapshot::default()), None);
        assert_eq!(mins(next(&with_plain(cluster(1, 1, 1)))), (1, 1, 4), "writers first");
        let rewriting = next(&with_plain(cluster(1, 1, 4)));
        assert_eq!(rewriting, Some(Next::Rewriting(vec!["apps/a/envs/e1".into()])));
        let mut with_wraps = cluster(3, 3, 4);
        let view = AppView { app: Some(row(app())), ..AppView::default() };
        with_wraps.apps.insert("a".parse().expect("a name"), view);
        assert_eq!(mins(next(&with_wraps)), (4, 4, 4));
        let view = with_wraps.apps.values_mut().next().expect("it was added");
        view.earlier_wraps.insert("e1".parse().expect("a ref"), row(Wraps::default()));
        assert_eq!(next(&with_wraps), Some(Next::Rewriting(vec!["wraps/a/e1".into()])));
        assert_eq!(mins(next(&cluster(1, 1, 4))), (4, 4, 4));
        assert_eq!(mins(next(&cluster(2, 2, 2))), (2, 2, 4));
        assert_eq!(mins(next(&cluster(3, 3, 4))), (4, 4, 4));
        assert_eq!(next(&cluster(4, 4, 4)), Some(Next::Done));
        assert_eq!(mins(next(&cluster(4, 1, 1))), (4, 1, 4), "half migrated");
        assert_eq!(next(&cluster(9, 1, 9)), Some(Next::Later { version: 9 }));
    }

    #[test]
    fn nobody_is_shut_out_who_is_there() {
        for step in [cluster(1, 1, 1), cluster(1, 1, 4), cluster(2, 2, 2), cluster(3, 3, 4)] {
            for version in [None, Some(2), Some(3)] {
                let next = next(&with_rm(step.clone(), version));
                let older = Older { part: "rm r1".into(), version: String::new() };
                assert_eq!(next, Some(Next::Older(vec![older])));
            }
        }
        assert_eq!(mins(next(&with_rm(cluster(1, 1, 1), Some(4)))), (1, 1, 4));
    }
}
