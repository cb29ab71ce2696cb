//! The audit: who asked for which change, what was read and refused, and what keeps the record bounded.

pub mod journal;
pub mod refusals;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{sync::Notify, time::sleep};
use visor::{
    identity::{Identity, Kind},
    names::{AppName, HostName},
    schema::{AuditEntry, Extra},
    transitions::audit::AuditBounds,
    visor::{Result, Visor},
};

use crate::sources::Sources;

/// The writer of changes that callers ask for.
#[derive(Clone)]
pub struct Auditor {
    /// The coordinator's rows.
    pub visor: Visor,
    /// This rm's name.
    pub own: HostName,
    /// The time and the ids of entries.
    pub sources: Sources,
}

impl Auditor {
    /// Returns the coordinator's rows for a caller's request, which is recorded in the audit.
    pub fn visor(&self, by: String, from: Option<SocketAddr>, what: String, app: Option<&AppName>) -> Visor {
        self.recording(None, by, from, what, app)
    }

    /// Records a request that changes nothing, such as [`AuditEntry::READ`].
    ///
    /// # Errors
    /// The store's.
    pub async fn note(
        &self,
        kind: &'static str,
        by: String,
        from: Option<SocketAddr>,
        what: String,
        app: Option<&AppName>,
    ) -> Result<()> {
        self.recording(Some(kind), by, from, what, app).note().await
    }

    fn recording(
        &self,
        kind: Option<&'static str>,
        by: String,
        from: Option<SocketAddr>,
        what: String,
        app: Option<&AppName>,
    ) -> Visor {
        let entry = AuditEntry {
            what,
            app: app.cloned(),
            by: Some(by),
            from: from.map(|from| from.ip().to_string()).unwrap_or_default(),
            kind: kind.map(str::to_owned),
            at: self.sources.now(),
            extra: Extra::new(),
        };
        self.visor.audited(&Identity::Daemon(Kind::Rm, self.own.clone()), entry, self.sources.number())
    }
}

/// The pause between two checks, unless many entries come.
const EVERY: Duration = Duration::from_secs(600);

/// The shortest pause between two checks.
const SOON: Duration = Duration::from_secs(10);

/// Deletes entries beyond the bounds, without end; sooner when `many` is told. Several rms may do this at the same time.
pub async fn keep(visor: Visor, sources: Sources, many: Arc<Notify>) {
    let bounds = AuditBounds::default();
    loop {
        match visor.trim_audit(bounds, sources.now()).await {
            Ok(0) => {}
            Ok(gone) => tracing::info!(gone, "old entries of the audit taken away"),
            Err(error) => tracing::warn!(error = %error, "the audit can't be trimmed; trying again later"),
        }
        sleep(SOON).await;
        tokio::select! {
            () = sleep(EVERY) => {}
            () = many.notified() => {}
        }
    }
}
