//! Apps, their repositories' state and their revs, which bazooka-rm writes.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::{
    keys::{self, Key},
    names::{AppName, ProcName, RevId, UserName},
    ports::{MOST_SERVICES, PortBook},
    quota::{self, Bounds},
    rows::RowKind,
    schema::{Access, App, Extra, Granted, Proc, Repo, Rev},
    snapshot::{AppView, Snapshot, Versioned},
    store::Keys,
    transitions::ports::{counting, freeing, giving},
    visor::{Change, Committed, Decided, Decision, Refusal, Result, Visor, VisorError},
};

/// The most keys that one transaction deletes.
///
/// On etcd 3.4 a delete of 20,000 keys slows each later transaction thirtyfold.
const DELETE_PIECE: usize = 100;

impl Visor {
    /// Registers an app.
    ///
    /// # Errors
    /// [`Refusal::AppExists`].
    pub async fn register_app(&self, name: &AppName, owner: &str, token: &str, now: Timestamp) -> Result<()> {
        self.register_app_of(name, owner, None, token, now).await
    }

    /// Registers an app whose owner is an identity of the cluster.
    ///
    /// # Errors
    /// [`Refusal::AppExists`].
    pub async fn register_app_of(
        &self,
        name: &AppName,
        owner: &str,
        user: Option<&UserName>,
        token: &str,
        now: Timestamp,
    ) -> Result<()> {
        let key = Key::App(name.clone());
        self.decide(vec![Keys::One(key.to_string())], |snapshot| {
            match snapshot.apps.get(name).and_then(|view| view.app.as_ref()) {
                Some(app) if app.token == token => Ok(Decision::Already(())),
                Some(app) => Err(Refusal::AppExists(name.clone(), app.owner.clone()).into()),
                None => {
                    let app = App {
                        owner: owner.into(),
                        created_at: now,
                        token: token.into(),
                        destroying: false,
                        extra: Extra::new(),
                    };
                    let mut change = Change::new().absent(&key).put(&key, &app);
                    if let Some(user) = user {
                        let granted = Granted { by: owner.into(), at: now, extra: Extra::new() };
                        let access = Access { users: [(user.clone(), granted)].into(), extra: Extra::new() };
                        change = change.put(&Key::Access(name.clone()), &access);
                    }
                    Ok(Decision::Change(change, ()))
                }
            }
        })
        .await
        .map(Decided::into_value)
    }

    /// Marks an app as being destroyed, so that nothing of it is wanted any more.
    ///
    /// [`Visor::forget_app`] deletes its rows later, when nothing of it runs.
    ///
    /// # Errors
    /// [`Refusal::NoSuchApp`].
    pub async fn destroy_app(&self, name: &AppName) -> Result<()> {
        let key = Key::App(name.clone());
        self.decide(vec![Keys::One(key.to_string())], |snapshot| {
            let app = registered(snapshot, name)?;
            if app.destroying {
                return Ok(Decision::Already(()));
            }
            let after = App { destroying: true, ..app.value.clone() };
            Ok(Decision::Change(Change::new().as_read(&key, Some(app)).put(&key, &after), ()))
        })
        .await
        .map(Decided::into_value)
    }

    /// Deletes all rows of an app that is being destroyed, in small pieces, the app's own row last. Its ports rest.
    ///
    /// Returns false, having deleted nothing, while instances of it are left. A crash halfway leaves an app that is
    /// still marked, so that the next call continues.
    ///
    /// # Errors
    /// [`Refusal::NoSuchApp`]; the store's.
    pub async fn forget_app(&self, name: &AppName, now: Timestamp) -> Result<bool> {
        let own = Key::App(name.clone());
        let scopes = vec![Keys::One(own.to_string()), keys::app_below(name), keys::ports()];
        let snapshot = self.read(scopes).await?;
        let app = registered(&snapshot, name)?.clone();
        if !app.destroying || !snapshot.apps[name].instances.is_empty() {
            return Ok(false);
        }
        let book = PortBook::of(&snapshot);
        for (port, row) in snapshot.ports.iter().filter(|(_, row)| row.app == *name && book.is_in_force(row))
        {
            let change = Change::new().as_read(&own, Some(&app));
            if self.commit(freeing(change, *port, row, now)).await? == Committed::Conflict {
                return Err(VisorError::Contended);
            }
        }
        for scope in keys::deleted_with(name) {
            let page = self.store().range(scope, None).await?;
            for piece in page.entries.chunks(DELETE_PIECE) {
                let mut change = Change::new().as_read(&own, Some(&app));
                for entry in piece {
                    change = change.delete_all(Keys::One(entry.key.clone()));
                }
                if self.commit(change).await? == Committed::Conflict {
                    return Err(VisorError::Contended);
                }
            }
        }
        let guarded = Change::new().as_read(&own, Some(&app));
        let last = keys::deleted_beside(name).into_iter().fold(guarded, Change::delete_all);
        Ok(matches!(self.commit(last).await?, Committed::Done(_)))
    }

    /// Writes how far an app's repository is set up.
    ///
    /// # Errors
    /// [`Refusal::NoSuchApp`] if the app has been deleted meanwhile.
    pub async fn report_repo(&self, name: &AppName, repo: &Repo) -> Result<()> {
        let (own, key) = (Key::App(name.clone()), Key::Repo(name.clone()));
        let scopes = vec![Keys::One(own.to_string()), Keys::One(key.to_string())];
        self.decide(scopes, |snapshot| {
            let app = registered(snapshot, name)?;
            let before = snapshot.apps[name].repo.as_ref();
            if before.is_some_and(|before| before.value == *repo) {
                return Ok(Decision::Already(()));
            }
            let change = Change::new().as_read(&own, Some(app)).as_read(&key, before).put(&key, repo);
            Ok(Decision::Change(change, ()))
        })
        .await
        .map(Decided::into_value)
    }

    /// Registers a built rev, and a service with a port for each proc that is new to the app.
    ///
    /// A registered rev stays as it is. Ports in `taken` are skipped. A proc that was registered by an earlier release keeps
    /// the port that its row names until [`PortKeeping`](crate::port_keeping::PortKeeping) has given it one. Returns every
    /// proc of the rev with its port.
    ///
    /// # Errors
    /// [`Refusal::NoSuchApp`], [`Refusal::Destroying`], [`Refusal::NoPortLeft`], [`Refusal::TooManyServices`],
    /// [`Refusal::OverQuota`].
    pub async fn register_rev(
        &self,
        name: &AppName,
        id: &RevId,
        rev: &Rev,
        taken: &BTreeSet<u16>,
    ) -> Result<BTreeMap<ProcName, u16>> {
        let mut scopes = keys::app(name);
        let counter = Keys::One(Key::PortCounter.to_string());
        scopes.extend([counter, keys::rms(), keys::schema(), keys::ports()]);
        self.decide(scopes, |snapshot| {
            let own = Key::App(name.clone());
            let app = registered(snapshot, name)?;
            if app.destroying {
                return Err(Refusal::Destroying(name.clone()).into());
            }
            let view = &snapshot.apps[name];
            let before = snapshot.port_counter.as_ref();
            let mut last = before.map_or(0, |counter| counter.value);
            let mut free = PortBook::of(snapshot).free(last).filter(|port| !taken.contains(port));
            let mut change = Change::new().as_read(&own, Some(app));
            let mut ports = BTreeMap::new();
            for proc in rev.procs.keys() {
                let port = match known_port(snapshot, name, view, proc)? {
                    Some(port) => port,
                    None => {
                        let port = free.next().ok_or(Refusal::NoPortLeft)?;
                        last = last.max(u64::from(port));
                        let known = view.procs.get(proc);
                        change = giving(change, (name, proc), app, known, port, rev.at);
                        port
                    }
                };
                if !view.procs.contains_key(proc) && PortBook::of(snapshot).given(name, proc).is_some() {
                    let key = Key::Proc(name.clone(), proc.clone());
                    change = change.absent(&key).put(&key, &Proc::new(proc, port));
                }
                ports.insert(proc.clone(), port);
            }
            let procs: BTreeSet<&ProcName> = view.procs.keys().chain(rev.procs.keys()).collect();
            if procs.len() > MOST_SERVICES && procs.len() > view.procs.len() {
                return Err(Refusal::TooManyServices(name.clone(), procs.len()).into());
            }
            change = counting(change, before, last);
            if !view.revs.contains_key(id) {
                fits(name, snapshot, view, quota::rev_bytes(rev))?;
                let key = Key::Rev(name.clone(), id.clone());
                change = change.absent(&key).put(&key, rev);
            }
            Ok(if change.then.is_empty() {
                Decision::Already(ports)
            } else {
                Decision::Change(change, ports)
            })
        })
        .await
        .map(Decided::into_value)
    }
}

/// Checks that the app may keep a row of this size beside what it has. The snapshot has all rms.
///
/// # Errors
/// [`Refusal::OverQuota`].
pub(crate) fn fits(name: &AppName, snapshot: &Snapshot, view: &AppView, more: u64) -> Result<()> {
    let most = Bounds::of(snapshot.rms.values().map(|rm| &rm.value)).bytes;
    let used = quota::bytes(view);
    match used.saturating_add(more) > most {
        true => Err(Refusal::OverQuota { app: name.clone(), used, more, most }.into()),
        false => Ok(()),
    }
}

/// Returns the port of a proc that has one; none if it is to be given one.
fn known_port(snapshot: &Snapshot, name: &AppName, view: &AppView, proc: &ProcName) -> Result<Option<u16>> {
    let book = PortBook::of(snapshot);
    if let Some(port) = book.given(name, proc) {
        return Ok(Some(port));
    }
    let Some(known) = view.procs.get(proc) else { return Ok(None) };
    if !book.is_strict() && PortBook::is_registered(view, proc) {
        return Ok(Some(known.port));
    }
    // The row that cannot be read may be this proc's.
    match snapshot.unreadable_of(RowKind::Port).next() {
        Some((key, why)) => Err(VisorError::Unreadable { key: key.to_string(), detail: why.to_owned() }),
        None => Ok(None),
    }
}

/// Returns the app's own row.
pub(crate) fn registered<'a>(snapshot: &'a Snapshot, name: &AppName) -> Result<&'a Versioned<App>> {
    let unreadable = snapshot.unreadable.get(&Key::App(name.clone()).to_string());
    if let Some(detail) = unreadable {
        return Err(VisorError::Unreadable {
            key: Key::App(name.clone()).to_string(),
            detail: detail.clone(),
        });
    }
    snapshot
        .apps
        .get(name)
        .and_then(|view| view.app.as_ref())
        .ok_or_else(|| Refusal::NoSuchApp(name.clone()).into())
}
