//! The web page: a live, read-only overview of the cluster.
//!
//! Owns the page's routes and the image that keeps it live; [`view`] owns its content. Costs nothing while no viewer is
//! connected: one image, shared by all viewers, is dropped some seconds after the last of them has left.

pub mod view;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Extension, Router,
    extract::State,
    http::{StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use bazooka_daemon::Cluster;
use futures::stream;
use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use visor::{access::Act, identity::Caller, keys, mirror::Mirror, snapshot::Snapshot};

use crate::{
    endpoint::{ApiError, allow},
    tasks::Errands,
};

/// The shortest time between two updates sent to viewers; people don't notice faster ones.
const EVERY: Duration = Duration::from_millis(250);

/// The time that the image is kept after the last viewer left, and the interval of the check for viewers.
const LINGER: Duration = Duration::from_secs(10);

/// The lifetime of one connection. The browser then reconnects by itself and is authenticated again.
const CONNECTION: Duration = Duration::from_secs(60);

/// The largest number of simultaneous viewers.
const VIEWERS: usize = 100;

/// The content security policy: the browser loads and runs only what this endpoint serves.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The sender of the page's current content as JSON; `None` until the first image is complete.
type Teller = watch::Sender<Option<Arc<str>>>;

/// The state that all requests of the page share.
#[derive(Clone)]
struct Page {
    cluster: Cluster,
    errands: Errands,
    /// The sender of the content; `None` while there are no viewers.
    shown: Arc<Mutex<Option<Arc<Teller>>>>,
}

/// Returns the page's routes. `/live` returns the whole content as JSON, for people and their scripts alike.
pub fn routes(cluster: Cluster, errands: Errands) -> Router {
    let page = Page { cluster, errands, shown: Arc::default() };
    Router::new()
        .route("/", get(|| file("text/html; charset=utf-8", include_str!("page/index.html"))))
        .route("/page.css", get(|| file("text/css; charset=utf-8", include_str!("page/page.css"))))
        .route("/page.js", get(|| file("text/javascript; charset=utf-8", include_str!("page/page.js"))))
        .route("/live", get(live))
        .with_state(page)
}

/// Returns a static file of the page. It is the same for every caller and holds no data of the cluster.
async fn file(kind: &'static str, text: &'static str) -> Response {
    let head = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (head, text).into_response()
}

/// Streams the content and each change of it as server-sent events (HTML standard).
async fn live(State(page): State<Page>, Extension(caller): Extension<Caller>) -> Result<Response, ApiError> {
    allow(&page.cluster, &caller, Act::Directory, None).await?;
    let Some(shown) = page.look() else {
        return Ok((StatusCode::SERVICE_UNAVAILABLE, "too many look at it already\n").into_response());
    };
    let until = Instant::now() + CONNECTION;
    let told = stream::unfold((shown, true), move |(mut shown, first)| async move {
        // The first event carries the current content, later events carry changes.
        if first {
            shown.mark_changed();
        }
        loop {
            tokio::select! {
                changed = shown.changed() => changed.ok()?,
                () = sleep_until(until) => return None,
            }
            let text = shown.borrow_and_update().clone();
            if let Some(text) = text {
                return Some((Ok::<_, Infallible>(Event::default().data(&*text)), (shown, false)));
            }
        }
    });
    Ok(Sse::new(told).keep_alive(KeepAlive::default()).into_response())
}

impl Page {
    /// Adds a viewer and returns its receiver, or `None` at [`VIEWERS`]. The first viewer starts the image.
    fn look(&self) -> Option<watch::Receiver<Option<Arc<str>>>> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let teller = shown.get_or_insert_with(|| {
            let teller = Arc::new(Teller::new(None));
            self.errands.spawn("the page's image", keep(self.clone(), teller.clone()));
            teller
        });
        (teller.receiver_count() < VIEWERS).then(|| teller.subscribe())
    }

    /// Returns true, and drops the sender, if no viewers are left. The next viewer then starts a new image.
    fn let_go(&self, teller: &Teller) -> bool {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let alone = teller.receiver_count() == 0;
        if alone {
            *shown = None;
        }
        alone
    }
}

/// Guard that drops the sender when the image's task ends for any reason, so that the next viewer starts a new one.
struct Kept {
    page: Page,
    teller: Arc<Teller>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut shown = self.page.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.as_ref().is_some_and(|shown| Arc::ptr_eq(shown, &self.teller)) {
            *shown = None;
        }
    }
}

/// Keeps the page's content current until no viewers are left.
async fn keep(page: Page, teller: Arc<Teller>) {
    let Kept { page, teller } = &Kept { page, teller };
    let store = page.cluster.visor.store().clone();
    let mut mirror = Mirror::new(store, keys::everything(), Snapshot::default());
    let (mut stale, mut was_synced) = (false, false);
    let (mut tell_at, mut look_at) = (Instant::now(), Instant::now() + LINGER);
    loop {
        tokio::select! {
            _ = mirror.next() => stale = true,
            () = sleep_until(tell_at), if stale => {
                if mirror.is_synced() {
                    let text = serde_json::to_string(&view::view(mirror.image(), Timestamp::now()));
                    teller.send_replace(text.ok().map(Arc::from));
                    was_synced = true;
                } else if was_synced {
                    teller.send_replace(Some(Arc::from(r#"{"out_of_touch":true}"#)));
                    was_synced = false;
                }
                (stale, tell_at) = (false, Instant::now() + EVERY);
            }
            () = sleep_until(look_at) => {
                if page.let_go(teller) {
                    return;
                }
                look_at = Instant::now() + LINGER;
                // Losing touch with the coordinator doesn't change the image, so it is checked here.
                stale |= mirror.is_synced() != was_synced;
            }
        }
    }
}
