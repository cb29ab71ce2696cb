//! Contradictions between hosts, or between a host and the backup.
//!
//! Owns finding them. A host may be wrong on purpose: an instance that contradicts another host's report, or what the
//! backup knows for certain, could make its own rev the head of an app. Nothing of such a contradiction is entered, and a
//! person decides.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::Live;
use crate::{
    names::{AppName, Digest, EnvRef, HostName, InstanceId, RevId},
    schema::Slug,
    snapshot::AppView,
};

/// The contradictions about one app.
#[derive(Debug, Default)]
pub(super) struct Disputes {
    /// The instances that are not entered.
    pub instances: BTreeSet<(HostName, InstanceId)>,
    /// The contradictions in words, a line each.
    pub told: Vec<String>,
}

/// Returns the contradictions about an app. `taken` has the instances that several hosts report.
pub(super) fn disputes(
    name: &AppName,
    view: Option<&AppView>,
    live: &[Live<'_>],
    taken: &BTreeMap<InstanceId, BTreeSet<&HostName>>,
) -> Disputes {
    let mut found = Disputes::default();
    for one in live {
        if let Some(view) = view {
            found.against_backup(name, view, one);
        }
        let placed = view.and_then(|view| view.instances.get(&one.id));
        let hosts = &taken[&one.id];
        if placed.is_none() && hosts.len() > 1 {
            let hosts: Vec<&str> = hosts.iter().map(|host| host.as_str()).collect();
            found.add(one, format!("{name}: {} all say that they run {}", hosts.join(" and "), one.id));
        }
    }
    // What contradicts the backup puts nothing else in doubt.
    let doubted = found.instances.clone();
    let live: Vec<&Live<'_>> =
        live.iter().filter(|one| !doubted.contains(&(one.host.clone(), one.id))).collect();
    let releases =
        differing(&live, |one| (one.assignment.release, (&one.assignment.rev, one.assignment.env)));
    for (release, of) in &releases {
        let said =
            |(rev, env): &(&RevId, EnvRef), host: &HostName| format!("{} and {env} on {host}", rev.short());
        found.between(name, *release, of, said);
    }
    let revs = differing(&live, |one| (&one.assignment.rev, &one.assignment.slug.sha256));
    for (rev, of) in &revs {
        let said = |slug: &&Digest, host: &HostName| format!("slug {slug} on {host}");
        found.between(name, rev.short(), of, said);
    }
    found
}

type Differing<'a, K, V> = BTreeMap<K, BTreeMap<V, Vec<&'a Live<'a>>>>;

/// Returns what of one name isn't the same on all hosts.
fn differing<'a, K: Ord, V: Ord>(
    live: &[&'a Live<'a>],
    of: impl Fn(&'a Live<'a>) -> (K, V),
) -> Differing<'a, K, V> {
    let mut all: Differing<'a, K, V> = BTreeMap::new();
    for one in live.iter().copied() {
        let (name, what) = of(one);
        all.entry(name).or_default().entry(what).or_default().push(one);
    }
    all.retain(|_, versions| versions.len() > 1);
    all
}

impl Disputes {
    fn add(&mut self, one: &Live<'_>, words: String) {
        self.instances.insert((one.host.clone(), one.id));
        if !self.told.contains(&words) {
            self.told.push(words);
        }
    }

    /// The backup's rows were written before any of this: what contradicts them is wrong.
    fn against_backup(&mut self, name: &AppName, view: &AppView, one: &Live<'_>) {
        let assignment = one.assignment;
        if let Some(row) = view.instances.get(&one.id).filter(|row| row.host != *one.host) {
            self.add(
                one,
                format!("{name}: {} says that it runs {}, which is {}'s", one.host, one.id, row.host),
            );
        }
        let release = view.releases.get(&assignment.release);
        if release.is_some_and(|row| row.rev != assignment.rev || row.env != assignment.env) {
            self.add(
                one,
                format!(
                    "{name}: what {} runs as {} is not that release of the backup",
                    one.host, assignment.release
                ),
            );
        }
        let slug = view.revs.get(&assignment.rev).map(|row| &row.slug);
        if slug.is_some_and(|slug: &Slug| slug.sha256 != assignment.slug.sha256) {
            let rev = assignment.rev.short();
            self.add(
                one,
                format!("{name}: what {} runs as rev {rev} has another slug than the backup's", one.host),
            );
        }
    }

    fn between<V: Ord>(
        &mut self,
        name: &AppName,
        what: impl std::fmt::Display,
        versions: &BTreeMap<V, Vec<&Live<'_>>>,
        said: impl Fn(&V, &HostName) -> String,
    ) {
        let words: BTreeSet<String> = versions
            .iter()
            .flat_map(|(version, all)| all.iter().map(|one| said(version, one.host)))
            .collect();
        let words: Vec<String> = words.into_iter().collect();
        let words = format!("{name}: hosts contradict each other about {what}: {}", words.join(", "));
        for one in versions.values().flatten() {
            self.add(one, words.clone());
        }
    }
}
