//! What the instances of a proc may use.

use crate::{
    keys::{self, Key},
    names::{AppName, ProcName},
    schema::Limits,
    transitions::formation::on_service,
    visor::{Decided, Decision, Result, Visor},
};

/// What is changed of a proc's limits: each is left as it is, set, or taken back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitsChange {
    /// Memory, in bytes.
    pub memory_bytes: Option<Option<u64>>,
    /// Processor, in thousandths of one.
    pub cpu_millis: Option<Option<u32>>,
    /// Processes and threads.
    pub processes: Option<Option<u32>>,
}

impl LimitsChange {
    fn of(self, limits: &Limits) -> Limits {
        Limits {
            memory_limit_bytes: self.memory_bytes.unwrap_or(limits.memory_limit_bytes),
            cpu_limit_millis: self.cpu_millis.unwrap_or(limits.cpu_limit_millis),
            processes_limit: self.processes.unwrap_or(limits.processes_limit),
            extra: limits.extra.clone(),
        }
    }
}

impl Visor {
    /// Changes what the instances of a proc may use, from the next one on that is placed. Returns what holds then.
    ///
    /// # Errors
    /// [`NoSuchApp`], [`NoSuchProc`], [`Destroying`].
    ///
    /// [`NoSuchApp`]: crate::visor::Refusal::NoSuchApp
    /// [`NoSuchProc`]: crate::visor::Refusal::NoSuchProc
    /// [`Destroying`]: crate::visor::Refusal::Destroying
    pub async fn set_limits(&self, name: &AppName, proc: &ProcName, change: LimitsChange) -> Result<Limits> {
        self.decide(keys::services_of(name), |snapshot| {
            let (guarded, view) = on_service(snapshot, name, proc)?;
            let row = &view.procs[proc];
            let limits = change.of(&row.run.limits);
            if limits == row.run.limits {
                return Ok(Decision::Already(limits));
            }
            let mut settings = row.value.clone();
            settings.run.limits = limits.clone();
            let key = Key::Proc(name.clone(), proc.clone());
            Ok(Decision::Change(guarded.as_read(&key, Some(row)).put(&key, &settings), limits))
        })
        .await
        .map(Decided::into_value)
    }
}
