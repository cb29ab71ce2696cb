//! Checks of presence: each leased row is bound to a lease, so that it is deleted with its daemon.

use super::Findings;
use crate::{rows::Ends, snapshot::Snapshot, visor::Change};

pub(super) fn look(snapshot: &Snapshot, found: &mut Findings) {
    for (key, row) in snapshot.rows(|kind| kind.row().ends == Ends::Leased) {
        if row.lease.is_none() {
            let change = Change::new().unchanged(&key, row.mod_revision).delete(&key);
            let what = "it hangs on no lease, so it would stay when its daemon has gone";
            found.mend(
                &key,
                "presence-without-lease",
                what,
                "delete it: a daemon that is there writes it anew",
                change,
            );
        }
    }
}
