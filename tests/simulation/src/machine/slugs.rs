//! The way of a slug to a simulated machine: from the rm while there is one, else from a machine that has it.
//!
//! Owns what stands for bazooka-pm's HTTP here. Where to ask, and who is served, the production code decides.

use bazooka_pm::host::testing::{Event, Fetched, SourceKind, may_have, whereabouts};
use tokio::time::{Duration, Instant};
use visor::{
    identity::{Caller, Identity, Kind},
    keys,
    names::{Digest, HostName},
    visor::Visor,
};

use super::Hold;
use crate::nodes::Nodes;

/// The time for which a slug is tried while nobody has it, as in bazooka-pm.
const TRY_FOR: Duration = Duration::from_secs(60);

/// Fetches a slug, and tells when it is here or can't be had.
pub(super) async fn fetch(hold: Hold, visor: Visor, slug: Digest) {
    let begun = Instant::now();
    hold.world.wait(5..=400).await;
    let from = loop {
        if let Some(from) = find(&hold, &visor, &slug).await {
            break from;
        }
        let cause = "nobody who has it answers".to_owned();
        if begun.elapsed() >= TRY_FOR {
            return hold.see(Event::SlugFailed(slug, format!("can't fetch its slug: {cause}"))).await;
        }
        hold.see(Event::SlugDelayed(slug.clone(), cause)).await;
        hold.world.wait(100..=5_000).await;
    };
    hold.gate.step().await;
    if hold.machine(|machine| machine.disk_full) {
        let cause = "can't fetch its slug: no space left on device".to_owned();
        return hold.see(Event::SlugFailed(slug, cause)).await;
    }
    hold.machine(|machine| machine.slugs.insert(slug.clone()));
    hold.see(Event::SlugFetched(slug.clone(), Fetched { from, kept: true })).await;
    hold.see(Event::SlugReady(slug)).await;
}

/// Asks the rm, then the hosts that were named. Returns who had the slug.
async fn find(hold: &Hold, visor: &Visor, slug: &Digest) -> Option<SourceKind> {
    let world = &hold.world;
    if world.has_rm() && (world.is_healed() || !world.chance(0.1)) {
        return Some(SourceKind::Rm);
    }
    let found = whereabouts(visor, &hold.host, slug).await.ok()?;
    let hosts = found.sources.into_iter().filter(|source| source.kind == SourceKind::Host);
    let named = hosts.map(|source| source.name);
    // A host may ask another one that was never named to it.
    let stranger = world.chance(0.2).then(|| world.pick(&Nodes::hosts()).clone());
    for source in stranger.into_iter().chain(named).filter(|source| *source != hold.host) {
        if is_served(hold, &source, slug).await {
            world.note(format_args!("{} has slug {slug} from {source}", hold.host));
            return Some(SourceKind::Host);
        }
    }
    None
}

/// Asks one host, and judges the answer.
async fn is_served(hold: &Hold, source: &HostName, slug: &Digest) -> bool {
    hold.world.wait(1..=50).await;
    if !hold.world.machine(source, |machine| machine.slugs.contains(slug)) {
        return false;
    }
    let coordinator = Visor::new(hold.world.store.shared());
    let Ok(told) = coordinator.read(vec![keys::served_by(source)]).await else { return false };
    let caller = Caller::Known(Identity::Daemon(Kind::Pm, hold.host.clone()));
    let is_served = may_have(&told, source, &caller, slug);
    let mut rows = told.apps.values().flat_map(|view| &view.serving);
    let is_named = rows.any(|((host, _), row)| host == source && row.to == hold.host && row.slug == *slug);
    if is_served != is_named {
        let host = &hold.host;
        hold.world.breach(format_args!("{source} serves {slug} to {host}: {is_served}, named: {is_named}"));
    }
    is_served
}
