//! The sources of slugs: which hosts serve a slug to a host that lacks it.
//!
//! Owns that an instance that waits for its slug has hosts named to fetch it from, that each of these hosts is told, and
//! that it is told no longer once nobody waits. A host asks the bazooka-rms first: what was just built is there alone,
//! and hosts have their instances to serve. So sources cost nothing while an rm answers, and they are named all the same,
//! because an rm that is registered may answer nothing, or may have lost its disk. Pure.
//!
//! ```text
//! archives/H (each host: what it has) ─▶ choose ─▶ assigned/H/ID `sources`     whom to ask
//!                                              └─▶ serving/SOURCE/APP/ID       whom to answer
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
};

use visor::{
    names::{Digest, HostName, InstanceId, ZoneName},
    planted::{Bug, planted},
    schema::{Assignment, Desired, Extra, SlugSource, State},
    snapshot::{AppView, Snapshot},
};

use super::{draft::Draft, facts::Facts, step::Act};

/// The most hosts that are named to serve a slug to one host.
const MOST_SOURCES: usize = 3;

/// The hosts that have each slug, found once for all instances that are asked about.
pub struct Sources<'a> {
    snapshot: &'a Snapshot,
    holders: HashMap<Digest, Holders<'a>>,
}

/// The hosts that have a slug, by zone.
type Holders<'a> = BTreeMap<&'a ZoneName, Vec<&'a HostName>>;

impl<'a> Sources<'a> {
    /// Begins with an image, in which nothing is found yet.
    pub fn of(snapshot: &'a Snapshot) -> Self {
        Sources { snapshot, holders: HashMap::new() }
    }

    /// Returns the hosts that serve a slug to a host, the best first; none if the host has the slug's archive itself.
    ///
    /// Hosts of its own zone come first. The order differs from host to host, so that many hosts that lack the same slug
    /// do not all ask the same one.
    pub fn choose(&mut self, to: &HostName, slug: &Digest) -> Vec<SlugSource> {
        let snapshot = self.snapshot;
        if has(snapshot, to, slug) || planted(Bug::NoSourceIsNamed) {
            return Vec::new();
        }
        let holders = match self.holders.get(slug) {
            Some(holders) => holders,
            None => self.holders.entry(slug.clone()).or_insert_with(|| holders(snapshot, slug)),
        };
        let lot = lot(to, slug);
        let own = snapshot.hosts.get(to).and_then(|view| view.host.as_ref()).map(|host| &host.zone);
        let near = own.and_then(|zone| holders.get(zone)).into_iter();
        let zones: Vec<_> = holders.iter().filter(|(zone, _)| Some(**zone) != own).collect();
        let far = turned(&zones, lot).map(|(_, hosts)| *hosts);
        let named = near.chain(far).flat_map(|hosts| turned(hosts, lot)).take(MOST_SOURCES);
        let named = named.filter_map(|host| {
            let url = snapshot.hosts.get(*host)?.host.as_ref()?.url.clone();
            Some(SlugSource { host: (*host).clone(), url, extra: Extra::new() })
        });
        named.collect()
    }
}

fn holders<'a>(snapshot: &'a Snapshot, slug: &Digest) -> Holders<'a> {
    let mut holders = Holders::new();
    for (name, view) in &snapshot.hosts {
        if let Some(host) = view.host.as_ref().filter(|_| has(snapshot, name, slug)) {
            holders.entry(&host.zone).or_default().push(name);
        }
    }
    holders
}

/// Returns all of some things, beginning at one that the lot decides on.
fn turned<T>(all: &[T], lot: usize) -> impl Iterator<Item = &T> {
    let (before, from) = all.split_at(lot % all.len().max(1));
    from.iter().chain(before)
}

/// Reports whether a registered host has the archive of a slug.
///
/// A host writes its URL itself, and another host's daemon is to make a request there: it must be an address and a port.
fn has(snapshot: &Snapshot, host: &HostName, slug: &Digest) -> bool {
    let view = snapshot
        .hosts
        .get(host)
        .filter(|view| view.host.as_ref().is_some_and(|host| host.endpoint().is_some()));
    view.and_then(|view| view.archives.as_ref()).is_some_and(|archives| archives.slugs.contains(slug))
}

/// Draws the lot by which hosts that lack a slug ask different ones first.
fn lot(to: &HostName, slug: &Digest) -> usize {
    let mut hasher = DefaultHasher::new();
    (to, slug).hash(&mut hasher);
    usize::try_from(hasher.finish() >> 33).expect("31 bits fit")
}

/// Reports whether an instance waits for its slug: it should run, and has not started yet.
fn waits(facts: &Facts<'_>) -> bool {
    facts.desired() == Desired::Run && matches!(facts.state(), None | Some(State::Claimed))
}

/// Plans an app's sources, but those of instances that this plan places.
pub(super) fn plan(sources: &mut Sources<'_>, view: &AppView, instances: &[Facts<'_>], draft: &mut Draft) {
    let snapshot = sources.snapshot;
    // The rows of these instances are written by another step of this plan, and the next plan sees to them.
    let moved = |act: &Act| match act {
        Act::Advance { id, .. } | Act::Lose { id } | Act::Archive { id, .. } => Some(*id),
        _ => None,
    };
    let moved: BTreeSet<InstanceId> = draft.acts.iter().filter_map(|(act, _)| moved(act)).collect();
    let mut named: BTreeSet<(&HostName, InstanceId)> = BTreeSet::new();
    for facts in instances.iter().filter(|facts| waits(facts) && !moved.contains(&facts.id)) {
        let Some(assigned) = facts.assigned.map(|assigned| &assigned.value) else { continue };
        let wanted = sources.choose(&facts.row.host, &assigned.slug.sha256);
        if wanted.is_empty() {
            draft.lacks_sources |= !has(snapshot, &facts.row.host, &assigned.slug.sha256);
            continue;
        }
        if is_served(snapshot, view, facts.id, assigned) {
            named.extend(assigned.sources.iter().map(|source| (&source.host, facts.id)));
            continue;
        }
        let kept = wanted.iter().filter_map(|source| {
            let (key, _) = view.serving.get_key_value(&(source.host.clone(), facts.id))?;
            Some((&key.0, facts.id))
        });
        named.extend(kept);
        draft.act(Act::Source { id: facts.id, sources: wanted }, "these hosts have its slug");
    }
    for (host, id) in view.serving.keys() {
        if !named.contains(&(host, *id)) && !moved.contains(id) && !planted(Bug::SourcesServeForEver) {
            draft.act(Act::EndService { host: host.clone(), id: *id }, "nothing waits for it any more");
        }
    }
}

/// Reports whether one of an instance's sources at least has the slug, is where the instance's host looks for it, and
/// was told.
fn is_served(snapshot: &Snapshot, view: &AppView, id: InstanceId, assigned: &Assignment) -> bool {
    let slug = &assigned.slug.sha256;
    assigned.sources.iter().any(|source| {
        let host = snapshot.hosts.get(&source.host).and_then(|view| view.host.as_ref());
        host.is_some_and(|host| host.url == source.url)
            && has(snapshot, &source.host, slug)
            && view.serving.get(&(source.host.clone(), id)).is_some_and(|row| row.slug == *slug)
    })
}

#[cfg(test)]
mod tests;
