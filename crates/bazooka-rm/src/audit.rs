//! The loop that keeps the audit bounded.

use std::time::Duration;

use tokio::time::sleep;
use visor::visor::Visor;

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
