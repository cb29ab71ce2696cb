//! The audit: who asked for which change, and the loop that keeps the record bounded.

use std::{net::SocketAddr, time::Duration};

use tokio::time::sleep;
use visor::{
    identity::{Identity, Kind},
    names::{AppName, HostName},
    schema::{AuditEntry, Extra},
    visor::Visor,
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
        let entry = AuditEntry {
            what,
            app: app.cloned(),
            by: Some(by),
            from: from.map(|from| from.ip().to_string()).unwrap_or_default(),
            at: self.sources.now(),
            extra: Extra::new(),
        };
        self.visor.audited(&Identity::Daemon(Kind::Rm, self.own.clone()), entry, self.sources.number())
    }
}

/// The number of entries kept, which take some hundred kilobytes.
pub const KEPT: usize = 2000;

/// The pause between two checks.
const EVERY: Duration = Duration::from_secs(600);

/// Deletes old entries, without end. Several rms may do this at the same time.
pub async fn keep(visor: Visor) {
    loop {
        match visor.trim_audit(KEPT).await {
            Ok(0) => {}
            Ok(gone) => tracing::info!(gone, kept = KEPT, "old entries of the audit taken away"),
            Err(error) => tracing::warn!(error = %error, "the audit can't be trimmed; trying again later"),
        }
        sleep(EVERY).await;
    }
}
