//! The ways by which git's requests reach this rm: by its own URLs, and through the proxies of the cluster.
//!
//! Owns the look at the coordinator's rows for them. The endpoint uses the last look while the coordinator is away.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bazooka_daemon::{git_token::GitFront, host_of_url, in_words};
use tokio::{
    net::lookup_host,
    sync::watch,
    time::{sleep, timeout},
};
use visor::{keys, visor::Visor};

use crate::repos::Own;

/// The interval of the looks. A proxy's row changes with everything that it routes, so it isn't watched.
const EVERY: Duration = Duration::from_secs(10);

/// The time that the name of a proxy may take to resolve.
const RESOLVES_IN: Duration = Duration::from_secs(2);

/// The schema version from which no program makes tokens that name no repository: `bazooka migrate` to it has shut the
/// release before out of the coordinator.
const TOKENS_ARE_BOUND: u32 = 3;

/// Returns the front before the first look, with its sender.
///
/// Until the first look nobody may do anything, because that needs the coordinator as well.
pub fn front(own: &Own) -> (watch::Sender<GitFront>, watch::Receiver<GitFront>) {
    watch::channel(GitFront { hosts: own_hosts(own), takes_unbound: true, ..GitFront::default() })
}

fn own_hosts(own: &Own) -> BTreeSet<String> {
    [&own.url, &own.git_url].into_iter().filter_map(|url| host_of_url(url)).collect()
}

/// Looks again and again. Never returns.
pub async fn keep(visor: Visor, own: Own, front: watch::Sender<GitFront>) {
    loop {
        match visor.read([keys::schema(), keys::rms(), keys::proxies()].into()).await {
            Ok(rows) => {
                let rms = rows.rms.values().map(|rm| rm.url.as_str());
                let proxies: Vec<String> = rows.proxies.values().map(|proxy| proxy.url.clone()).collect();
                let mut hosts = own_hosts(&own);
                hosts.extend(rms.chain(proxies.iter().map(String::as_str)).filter_map(host_of_url));
                let carriers = addresses(&proxies).await;
                let takes_unbound = rows.schema.is_none_or(|schema| schema.version < TOKENS_ARE_BOUND);
                let now = GitFront { carriers, hosts, takes_unbound };
                front.send_if_modified(|before| {
                    let changed = *before != now;
                    *before = now;
                    changed
                });
            }
            Err(error) => tracing::debug!(error = in_words(&error), "can't look for proxies"),
        }
        sleep(EVERY).await;
    }
}

/// Returns the addresses of the proxies' endpoints: the addresses from which their HAProxies connect.
async fn addresses(urls: &[String]) -> BTreeSet<IpAddr> {
    let mut found = BTreeSet::new();
    for host in urls.iter().filter_map(|url| host_of_url(url)) {
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        match bare.parse() {
            Ok(address) => drop(found.insert(address)),
            Err(_) => {
                if let Ok(Ok(resolved)) = timeout(RESOLVES_IN, lookup_host((bare, 0))).await {
                    found.extend(resolved.map(|address: SocketAddr| address.ip()));
                }
            }
        }
    }
    found.into_iter().map(bazooka_daemon::network).collect()
}
