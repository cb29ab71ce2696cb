//! The archives of slugs that this host has: which these are, and `GET /archives/SHA256`, which serves them to other hosts.
//!
//! Owns who may fetch an archive: a host whose instance waits for it, by the converger's word (`serving/H/A/ID`), and an
//! rm, which has every slug anyway. The fetching host verifies what comes, so that an archive with a changed bit runs
//! nowhere.
//!
//! ```text
//! converger ── serving/S/A/ID ──▶ S      S reads its own rows at each request, so that it answers at once
//!     └─────── assigned/H/ID ───▶ H ── GET /archives/SHA256 ──▶ S
//! ```

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bazooka_daemon::{Cluster, in_words, refused};
use futures::{Stream, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep},
};
use visor::{
    access::Act,
    bounds::MOST_ARCHIVES,
    identity::{Caller, Identity, Kind},
    keys,
    names::{Digest, HostName},
    pause::Doubling,
    planted::{Bug, planted},
    snapshot::Snapshot,
    visor::Visor,
};

use super::{
    metrics::{ArchiveAnswer, Metrics},
    pools::Pool,
    register::Registered,
    slugs::Slugs,
};

/// The most archives that are served at once. More callers are told to ask another host, or later.
const AT_ONCE: usize = 8;

/// The longest time that one archive may take.
const WITHIN: Duration = Duration::from_secs(600);

/// The bytes that are read from the disk at a time.
const PIECE_BYTES: usize = 256 << 10;

/// The pause after a failed report of the archives. An rm of an earlier release lets no pm write this row.
const PAUSE: Doubling = Doubling::new(Duration::from_millis(200), Duration::from_secs(30));

/// The slugs that a host can serve, and the registration under which it says so.
///
/// Both come by one channel, from the engine: a channel wakes several receivers in any order, and a simulated day must be
/// the same each time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// The host's registration.
    pub registered: Registered,
    /// The slugs whose archives are here.
    pub slugs: BTreeSet<Digest>,
}

/// The archives for other hosts' requests. Cheap to clone.
#[derive(Clone)]
pub struct Archives {
    cluster: Cluster,
    host: HostName,
    slugs: Slugs,
    pool: Pool,
    metrics: Metrics,
}

impl Archives {
    /// Creates the archives of a host. Work that blocks runs on the pool.
    pub fn new(
        cluster: &Cluster,
        host: &HostName,
        slugs: &Slugs,
        pool: &Pool,
        metrics: &Metrics,
    ) -> Archives {
        let (cluster, host, slugs) = (cluster.clone(), host.clone(), slugs.clone());
        Archives { cluster, host, slugs, pool: pool.clone(), metrics: metrics.clone() }
    }

    /// Returns the route.
    pub fn routes(self) -> Router {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        Router::new().route("/archives/{sha256}", get(serve)).with_state((self, places))
    }
}

async fn serve(
    State((archives, places)): State<(Archives, Arc<Semaphore>)>,
    Extension(caller): Extension<Caller>,
    Path(sha256): Path<String>,
) -> Response {
    let Archives { cluster, host, slugs, pool, metrics } = archives;
    match cluster.may(&caller, Act::Slug, None).await {
        Ok(true) => {}
        Ok(false) => {
            metrics.archive_asked(ArchiveAnswer::Refused);
            return refused(&caller).into_response();
        }
        Err(error) => return unknown(&error),
    }
    let Ok(slug) = sha256.parse::<Digest>() else {
        return (StatusCode::BAD_REQUEST, "GET /archives/SHA256\n").into_response();
    };
    match cluster.visor.read(vec![keys::served_by(&host)]).await {
        Ok(told) if may_have(&told, &host, &caller, &slug) => {}
        Ok(_) => {
            metrics.archive_asked(ArchiveAnswer::Refused);
            let words = format!("{host} was not told to serve slug {slug} to {caller}\n");
            return (StatusCode::FORBIDDEN, words).into_response();
        }
        Err(error) => return unknown(&error),
    }
    let Ok(place) = places.try_acquire_owned() else {
        metrics.archive_asked(ArchiveAnswer::Busy);
        let words = format!("{host} serves {AT_ONCE} archives already; ask later\n");
        return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "1")], words).into_response();
    };
    let path = slugs.archive(&slug);
    let opened = pool.run(move || {
        let file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        Ok::<_, io::Error>((file, length))
    });
    let Ok(Ok((file, length))) = opened.await else {
        metrics.archive_asked(ArchiveAnswer::Missing);
        return (StatusCode::NOT_FOUND, format!("{host} has no archive of slug {slug}\n")).into_response();
    };
    metrics.archive_asked(ArchiveAnswer::Served);
    let headers =
        [(header::CONTENT_TYPE, "application/zstd".to_owned()), (header::CONTENT_LENGTH, length.to_string())];
    (headers, Body::from_stream(pieces(file, pool, place))).into_response()
}

fn unknown(error: &visor::visor::VisorError) -> Response {
    let words = format!("can't tell who may: {}\n", in_words(error));
    (StatusCode::SERVICE_UNAVAILABLE, words).into_response()
}

/// Reads an archive piece by piece, as its reader takes it. The reader has its place until the end.
fn pieces(
    file: fs::File,
    pool: Pool,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let until = Instant::now() + WITHIN;
    stream::try_unfold((file, pool, place), move |(mut file, pool, place)| async move {
        if Instant::now() >= until {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the archive takes too long"));
        }
        let read = pool.run(move || {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            let bytes = u64::try_from(PIECE_BYTES).expect("it is small");
            (&mut file).take(bytes).read_to_end(&mut piece).map(|_| (piece, file))
        });
        let (piece, file) = read.await.map_err(io::Error::other)??;
        Ok((!piece.is_empty()).then(|| (Bytes::from(piece), (file, pool, place))))
    })
}

/// Reports whether a host was told to serve a slug to a caller. Without identities every caller is anyone, as at an rm:
/// then it serves what it was told to serve to any host.
///
/// `told` has the rows `serving/SOURCE/`.
pub fn may_have(told: &Snapshot, source: &HostName, caller: &Caller, slug: &Digest) -> bool {
    let to = match caller {
        Caller::Known(Identity::Daemon(Kind::Rm, _)) => return true,
        Caller::Known(Identity::Daemon(Kind::Pm, host)) => Some(host),
        Caller::Anyone => None,
        Caller::Known(_) | Caller::Unknown => return false,
    };
    let rows = told.apps.values().flat_map(|view| &view.serving);
    let mut own = rows.filter(|((host, _), row)| host == source && row.slug == *slug);
    own.any(|(_, row)| to.is_none_or(|to| row.to.as_str() == to.as_str()))
        || planted(Bug::UnnamedHostIsServed)
}

/// Keeps the row of this host's archives (`archives/H`) as they are, while the host is registered; for ever.
pub async fn report(visor: Visor, name: HostName, mut offers: watch::Receiver<Offer>) {
    let mut pauses = PAUSE.begin();
    let mut complained = false;
    loop {
        let Offer { registered, slugs } = offers.borrow_and_update().clone();
        let has: BTreeSet<Digest> = slugs.into_iter().take(MOST_ARCHIVES).collect();
        let written = match registered {
            Some(created_at) => visor.publish_archives(&name, created_at, &has).await,
            None => Ok(true),
        };
        match &written {
            Ok(true) => {
                pauses.reset();
                complained = false;
            }
            // The registration that replaced it is about to be seen.
            Ok(false) => {}
            Err(error) if !complained => {
                complained = true;
                tracing::warn!(
                    error = in_words(error),
                    "can't report which slugs other hosts may fetch here"
                );
            }
            Err(_) => {}
        }
        let is_written = matches!(written, Ok(true));
        let pause =
            async { if is_written { std::future::pending().await } else { sleep(pauses.next()).await } };
        tokio::select! {
            biased;
            changed = offers.changed() => if changed.is_err() { std::future::pending::<()>().await },
            () = pause => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use visor::store::{Entry, Image};

    use super::*;

    fn caller(name: &str) -> Caller {
        Caller::Known(name.parse().expect("valid"))
    }

    #[test]
    fn a_host_serves_a_slug_to_the_hosts_that_the_converger_named_and_to_rms() {
        let slug: Digest = "ab".repeat(32).parse().expect("valid");
        let other: Digest = "cd".repeat(32).parse().expect("valid");
        let mut told = Snapshot::default();
        for (key, to) in [("serving/h1/a/7", "h2"), ("serving/h3/a/7", "h4")] {
            told.put(&Entry {
                key: key.into(),
                value: format!(r#"{{"slug":"{slug}","to":"{to}"}}"#).into(),
                create_revision: 1,
                mod_revision: 1,
                lease: None,
            });
        }
        let h1: HostName = "h1".parse().expect("valid");
        for (who, wanted) in [
            (caller("pm:h2"), [true, false]),
            (caller("pm:h1"), [false, false]),
            (caller("pm:h4"), [false, false]),
            (caller("rm:r1"), [true, true]),
            (caller("ada"), [false, false]),
            (caller("proxy:p1"), [false, false]),
            (Caller::Unknown, [false, false]),
            (Caller::Anyone, [true, false]),
        ] {
            let may = [&slug, &other].map(|slug| may_have(&told, &h1, &who, slug));
            assert_eq!(may, wanted, "{who}");
        }
    }
}
