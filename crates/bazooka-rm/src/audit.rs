//! Keeps the audit bounded.

use std::time::Duration;

use tokio::time::sleep;
use visor::visor::Visor;

/// How many entries are kept: some hundred kilobytes.
pub const KEPT: usize = 2000;

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(600);

/// Takes old entries away, for ever. Several rms at it don't disturb each other.
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
