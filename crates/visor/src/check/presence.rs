//! Checks of presence: each of these rows is bound to a lease, so that it is deleted with its daemon.

use super::Findings;
use crate::{
    keys::Key,
    snapshot::{Snapshot, Versioned},
    visor::Change,
};

pub(super) fn look(snapshot: &Snapshot, found: &mut Findings) {
    for (name, view) in &snapshot.hosts {
        view.host.iter().for_each(|row| leased(Key::Host(name.clone()), row, found));
    }
    snapshot.proxies.iter().for_each(|(name, row)| leased(Key::Proxy(name.clone()), row, found));
    snapshot.rms.iter().for_each(|(name, row)| leased(Key::Rm(name.clone()), row, found));
    snapshot.asks.iter().for_each(|(name, row)| leased(Key::Ask(name.clone()), row, found));
    snapshot.leader.iter().for_each(|row| leased(Key::Leader, row, found));
    for (name, view) in &snapshot.apps {
        view.turn.iter().for_each(|row| leased(Key::Turn(name.clone()), row, found));
    }
}

fn leased<T>(key: Key, row: &Versioned<T>, found: &mut Findings) {
    if row.lease.is_none() {
        let change = Change::new().as_read(&key, Some(row)).delete(&key);
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
