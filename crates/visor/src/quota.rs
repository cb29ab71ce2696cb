//! The bounds of what an app keeps in the coordinator and runs on hosts, and how much of them it takes.
//!
//! Owns the sizes and the words about them. Whatever one app's people write, the coordinator keeps room for others: an app's
//! releases, revs and config vars have a bound in bytes and in number, pruning keeps them below it, and a change that
//! does not fit is refused. `transitions::formation` refuses instances beyond their bound: one app leaves room on the hosts as well.
//! Pure. An operator names other bounds where bazooka-rm starts; `rules::pruning` says what goes.

use crate::{
    schema::{Env, Formation, Release, Rev, Rm},
    snapshot::AppView,
};

/// The number of an app's last releases that pruning keeps, unless an operator says otherwise.
pub const KEPT_RELEASES: u32 = 50;

/// The fewest releases that an operator may have kept. A release must outlast the command that waits for it.
pub const FEWEST_RELEASES: u32 = 5;

/// The most releases that an operator may have kept.
pub const MOST_KEPT_RELEASES: u32 = 500;

/// The most releases of an app that may exist, kept or not yet pruned; then a new one is refused.
pub const MOST_RELEASES: usize = 1_000;

/// The bytes of an app's releases, revs and config vars, unless an operator says otherwise.
///
/// A person's hundred apps then take less than half of the 4 GiB that docs/cluster.md gives to etcd.
pub const APP_BYTES: u64 = 16 << 20;

/// The fewest bytes that an operator may give to an app. A quarter of them must hold the largest config vars.
pub const FEWEST_APP_BYTES: u64 = 8 << 20;

/// The most instances of an app, of all its procs and releases together, unless an operator says otherwise.
pub const APP_INSTANCES: u32 = 1_000;

/// The bytes that a row takes beside its texts, give or take some.
const ROW: u64 = 300;

/// The bounds that hold for each app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The number of last releases that are kept.
    pub releases: u32,
    /// The most bytes of an app's releases, revs and config vars.
    pub bytes: u64,
    /// The most instances that an app's formation may ask for.
    pub instances: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { releases: KEPT_RELEASES, bytes: APP_BYTES, instances: APP_INSTANCES }
    }
}

impl Bounds {
    /// Returns the bounds that hold while these rms serve: of each bound the largest that an rm names.
    pub fn of<'a>(rms: impl IntoIterator<Item = &'a Rm>) -> Bounds {
        let (mut releases, mut bytes, mut instances) = (None, None, None);
        for rm in rms {
            releases = releases.max(rm.keep_releases);
            bytes = bytes.max(rm.app_bytes);
            instances = instances.max(rm.app_instances);
        }
        Bounds {
            releases: releases.unwrap_or(KEPT_RELEASES),
            bytes: bytes.unwrap_or(APP_BYTES),
            instances: instances.unwrap_or(APP_INSTANCES),
        }
    }

    /// Returns the bytes to which pruning brings an app down, so that the next change fits.
    pub fn pruned_to(self) -> u64 {
        self.bytes / 4 * 3
    }

    /// Returns the words for an app that has reached four fifths of its bytes or of its releases.
    pub fn warning(self, view: &AppView) -> Option<String> {
        let (used, releases) = (bytes(view), view.releases.len());
        if used > self.bytes / 5 * 4 {
            return Some(format!(
                "the app takes {} of the {} that it may keep in the coordinator: older releases go before the last \
                 {} are reached, and what doesn't fit is refused; config vars are most of it",
                mebibytes(used),
                mebibytes(self.bytes),
                self.releases,
            ));
        }
        (releases > MOST_RELEASES / 5 * 4).then(|| {
            format!("the app has {releases} releases, of {MOST_RELEASES} at most: no bazooka-rm prunes them")
        })
    }
}

/// Returns the bytes that an app's releases, revs and config vars take.
pub fn bytes(view: &AppView) -> u64 {
    let releases: u64 = view.releases.values().map(|row| release_bytes(row)).sum();
    let envs: u64 = view.envs.values().map(|row| env_bytes(row)).sum();
    let revs: u64 = view.revs.values().map(|row| rev_bytes(row)).sum();
    releases.saturating_add(envs).saturating_add(revs)
}

/// Returns the number of instances that an app's formation asks for, of all its procs and releases.
pub fn instances(view: &AppView) -> u64 {
    view.formation.values().map(|row| wanted(row)).sum()
}

/// Returns the number of instances that the formation of one proc asks for.
pub fn wanted(formation: &Formation) -> u64 {
    let beside = formation.beside.values().map(|count| u64::from(*count));
    beside.sum::<u64>() + u64::from(formation.count)
}

/// Returns the bytes of a release's row, give or take some.
pub fn release_bytes(row: &Release) -> u64 {
    ROW + sum([row.reason.len(), row.by.len(), row.token.len(), row.cause.as_ref().map_or(0, String::len)])
}

/// Returns the bytes of the row of config vars, give or take some.
pub fn env_bytes(row: &Env) -> u64 {
    let sealed = row.sealed.as_ref().map_or(0, |sealed| sealed.payload.len());
    let plain = row.vars.as_ref().map_or(0, |vars| {
        vars.as_map().iter().map(|(name, value)| name.len() + value.len() + 6).sum::<usize>()
    });
    ROW + sum([sealed, plain, row.links.len() * 64])
}

/// Returns the bytes of a rev's row, give or take some.
pub fn rev_bytes(row: &Rev) -> u64 {
    let procs = row.procs.iter().map(|(proc, command)| proc.as_str().len() + command.len() + 6);
    ROW + sum([procs.sum(), row.subject.len(), row.by.len()])
}

/// Returns a number of bytes in words: `15.2 MiB`.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn sum<const N: usize>(lengths: [usize; N]) -> u64 {
    lengths.into_iter().sum::<usize>() as u64
}

// The bounds fit each other.
const _: () = {
    assert!(FEWEST_RELEASES <= KEPT_RELEASES && KEPT_RELEASES <= MOST_KEPT_RELEASES);
    assert!((MOST_KEPT_RELEASES as usize) < MOST_RELEASES, "what is kept leaves room for what comes");
    assert!(FEWEST_APP_BYTES <= APP_BYTES);
    assert!(FEWEST_APP_BYTES / 4 > 1536 << 10, "once pruned, there is room for the largest row");
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_rms_the_largest_bound_counts() {
        let rm = |keep_releases, app_bytes| Rm {
            keep_releases,
            app_bytes,
            app_instances: keep_releases.map(|n| n * 10),
            ..Rm::at("http://rm")
        };
        let of = |rms: &[Rm]| Bounds::of(rms);
        assert_eq!(of(&[]), Bounds::default());
        assert_eq!(of(&[rm(None, None)]), Bounds::default(), "an early build names none");
        let both = [rm(Some(20), Some(9 << 20)), rm(Some(10), Some(32 << 20)), rm(None, None)];
        assert_eq!(of(&both), Bounds { releases: 20, bytes: 32 << 20, instances: 200 });
    }

    #[test]
    fn an_app_is_warned_of_before_its_bounds_are_reached() {
        use crate::{names::EnvRef, schema::Extra, seal::Sealed, snapshot::Versioned};
        let view = |kib: usize| {
            let payload = "x".repeat(kib << 10);
            let sealed = Some(Sealed { cipher: String::new(), payload, form: 2 });
            let at = jiff::Timestamp::UNIX_EPOCH;
            let env = Env {
                sealed,
                vars: None,
                links: Default::default(),
                by: String::new(),
                at,
                extra: Extra::new(),
            };
            let env = Versioned { value: env, create_revision: 1, mod_revision: 1, lease: None };
            AppView { envs: [(EnvRef(1), env)].into(), ..AppView::default() }
        };
        let bounds = Bounds { bytes: 10 << 20, ..Bounds::default() };
        assert!(bounds.warning(&view(8 << 10)).is_some());
        assert_eq!(bounds.warning(&view(7 << 10)), None);
        let words = bounds.warning(&view(9 << 10)).expect("it is over");
        assert!(words.contains("9.0 MiB of the 10.0 MiB"), "{words}");
    }
}
