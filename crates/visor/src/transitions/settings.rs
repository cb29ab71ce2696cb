//! The settings of a proc.

use crate::{
    keys::{self, Key},
    names::{AppName, ProcName},
    schema::Proc,
    settings::Change,
    transitions::formation::on_service,
    visor::{Decided, Decision, Result, Visor},
};

impl Visor {
    /// Changes settings of a proc. Returns the proc with the changes.
    ///
    /// # Errors
    /// [`NoSuchApp`], [`NoSuchProc`], [`Destroying`].
    ///
    /// [`NoSuchApp`]: crate::visor::Refusal::NoSuchApp
    /// [`NoSuchProc`]: crate::visor::Refusal::NoSuchProc
    /// [`Destroying`]: crate::visor::Refusal::Destroying
    pub async fn change_settings(&self, name: &AppName, proc: &ProcName, changes: &[Change]) -> Result<Proc> {
        self.decide(keys::services_of(name), |snapshot| {
            let (guarded, view) = on_service(snapshot, name, proc)?;
            let row = &view.procs[proc];
            let mut changed = row.value.clone();
            changes.iter().for_each(|change| change.apply(proc, &mut changed));
            if changed == row.value {
                return Ok(Decision::Already(changed));
            }
            let key = Key::Proc(name.clone(), proc.clone());
            Ok(Decision::Change(guarded.as_read(&key, Some(row)).put(&key, &changed), changed))
        })
        .await
        .map(Decided::into_value)
    }
}
