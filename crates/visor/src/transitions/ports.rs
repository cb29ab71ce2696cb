//! The rows of service ports, which bazooka-rm writes.
//!
//! A port is given by the creation of its row, so no two services have one. [`crate::ports`] decides which.

use jiff::Timestamp;

use crate::{
    keys::{self, Key},
    names::{AppName, ProcName, ServicePort},
    ports::{PortBook, Service, Step},
    schema::{App, Extra, Port, Proc},
    snapshot::{Snapshot, Versioned},
    store::Keys,
    visor::{Change, Decision, Refusal, Result, Visor},
};

/// Returns the row of a port that is given to a service.
pub fn row(name: &AppName, app: &App, proc: &ProcName, at: Timestamp) -> Port {
    Port {
        app: name.clone(),
        proc: proc.clone(),
        token: app.token.clone(),
        at,
        freed_at: None,
        extra: Extra::new(),
    }
}

/// Adds a port for a service to a change that is guarded on the app's row.
///
/// `before` is the proc's row; it names the port afterwards.
pub(crate) fn giving(
    change: Change,
    service: (&AppName, &ProcName),
    app: &App,
    before: Option<&Versioned<Proc>>,
    port: u16,
    at: Timestamp,
) -> Change {
    let (name, proc) = service;
    let (own, key) = (Key::Proc(name.clone(), proc.clone()), Key::Port(ServicePort(port)));
    let change = change.as_read(&own, before).absent(&key).put(&key, &row(name, app, proc, at));
    match before {
        Some(before) if before.port == port => change,
        Some(before) => change.put(&own, &Proc { port, ..before.value.clone() }),
        None => change.put(&own, &Proc::new(proc, port)),
    }
}

/// Returns the change of a step, guarded on what it was decided from; none for [`Step::GiveAnother`], which is decided
/// anew, and for a step that the image does not ask for.
pub fn change(snapshot: &Snapshot, step: &Step, now: Timestamp) -> Option<Change> {
    match step {
        Step::Give((name, proc), port) => {
            let view = snapshot.apps.get(name)?;
            let app = view.app.as_ref()?;
            let change = Change::new().as_read(&Key::App(name.clone()), Some(app));
            Some(giving(change, (name, proc), app, Some(view.procs.get(proc)?), port.0, now))
        }
        Step::GiveAnother(_) => None,
        Step::Free(port) => {
            let row = snapshot.ports.get(port)?;
            let app = snapshot.apps.get(&row.app).and_then(|view| view.app.as_ref());
            let change = Change::new().as_read(&Key::App(row.app.clone()), app);
            Some(freeing(change, *port, row, now))
        }
        Step::Forget(port) => {
            let key = Key::Port(*port);
            Some(Change::new().as_read(&key, Some(snapshot.ports.get(port)?)).delete(&key))
        }
    }
}

/// Adds the begin of a port's rest to a change.
pub(crate) fn freeing(change: Change, port: ServicePort, row: &Versioned<Port>, now: Timestamp) -> Change {
    let (key, after) = (Key::Port(port), Port { freed_at: Some(now), ..row.value.clone() });
    change.as_read(&key, Some(row)).put(&key, &after)
}

impl Visor {
    /// Returns the next ports that can be given, `most` at most.
    ///
    /// # Errors
    /// The store's.
    pub async fn free_ports(&self, most: usize) -> Result<Vec<u16>> {
        let counter = Keys::One(Key::PortCounter.to_string());
        let snapshot = self.read(vec![keys::schema(), counter, keys::ports()]).await?;
        let counter = snapshot.port_counter.as_ref().map_or(0, |row| row.value);
        Ok(PortBook::of(&snapshot).free(counter).take(most).collect())
    }

    /// Gives a registered service without a row a port that is not the one its proc's row names.
    ///
    /// # Errors
    /// [`Refusal::NoPortLeft`]; the store's.
    pub async fn give_another_port(&self, service: &Service, now: Timestamp) -> Result<()> {
        let (name, proc) = service;
        let own = Key::Proc(name.clone(), proc.clone());
        let singles = [Key::App(name.clone()), own, Key::PortCounter].map(|key| Keys::One(key.to_string()));
        let scopes = singles.into_iter().chain([keys::schema(), keys::ports()]).collect();
        self.decide(scopes, |snapshot| {
            let book = PortBook::of(snapshot);
            let view = snapshot.apps.get(name);
            let rows = view.and_then(|view| Some((view.app.as_ref()?, view.procs.get(proc)?)));
            let Some((app, row)) = rows.filter(|(app, _)| !app.destroying) else {
                return Ok(Decision::Already(()));
            };
            if book.given(name, proc).is_some() {
                return Ok(Decision::Already(()));
            }
            let before = snapshot.port_counter.as_ref();
            let counter = before.map_or(0, |row| row.value);
            let port = book.free(counter).find(|port| *port != row.port).ok_or(Refusal::NoPortLeft)?;
            let change = Change::new().as_read(&Key::App(name.clone()), Some(app));
            let change = giving(change, (name, proc), app, Some(row), port, now);
            Ok(Decision::Change(counting(change, before, counter.max(u64::from(port))), ()))
        })
        .await
        .map(|_| ())
    }
}

/// Adds the raised counter to a change, if it is raised. Earlier releases give the port after it.
pub(crate) fn counting(change: Change, before: Option<&Versioned<u64>>, last: u64) -> Change {
    if last <= before.map_or(0, |row| row.value) {
        return change;
    }
    change.as_read(&Key::PortCounter, before).put(&Key::PortCounter, &last)
}
