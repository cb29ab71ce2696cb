//! Waiting for a coordinator that does not answer yet.

use std::time::Duration;

use tokio::time::sleep;

use super::{Keys, Result, Store, StoreError};
use crate::pause::Doubling;

/// The pause between two attempts; its longest is the most by which a daemon may notice a coordinator too late.
const PAUSE: Doubling = Doubling::new(Duration::from_millis(100), Duration::from_secs(1));

/// The key that is read, whether it exists or not. Each identity may read it.
const PROBE: &str = "schema";

/// Waits until the store answers and admits this identity, which an operator may do at any moment.
///
/// `say` is called once, with the first failure, if there is one.
///
/// # Errors
/// A refusal of the store for another reason than lack of rights: waiting would not change it.
///
/// # Cancel safety
/// Nothing is lost.
pub async fn wait_until_ready(store: &dyn Store, say: impl FnOnce(&StoreError) + Send) -> Result<()> {
    let mut say = Some(say);
    let mut pauses = PAUSE.begin();
    loop {
        match store.range(Keys::One(PROBE.to_owned()), None).await {
            Ok(_) => return Ok(()),
            Err(error @ StoreError::Refused { .. }) if !error.is_denied() => return Err(error),
            Err(error) => {
                if let Some(say) = say.take() {
                    say(&error);
                }
            }
        }
        sleep(pauses.next()).await;
    }
}
