//! The page: a cluster at a glance, read only, live.
//!
//! Owns its routes and what keeps it live; what it shows is [`view`]'s. Nobody who looks costs nothing: the image is kept
//! while somebody does, once for all of them.

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
use futures::stream;
use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use visor::{access::Act, identity::Caller, keys, mirror::Mirror, snapshot::Snapshot};

use crate::{
    endpoint::{ApiError, allow},
    rm::SharedRm,
};

/// How often it is told anew, at most: an eye takes no more in.
const EVERY: Duration = Duration::from_millis(250);

/// How long the image is kept when nobody looks any more, and how often it is looked who does.
const LINGER: Duration = Duration::from_secs(10);

/// How long one connection lasts. A browser opens the next by itself, and is asked who it is.
const CONNECTION: Duration = Duration::from_secs(60);

/// How many may look at once.
const VIEWERS: usize = 100;

/// Only what is served here is loaded and run.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Tells what is shown now, as JSON; none until the first image is whole.
type Teller = watch::Sender<Option<Arc<str>>>;

/// What keeps the page live.
#[derive(Clone)]
struct Page {
    rm: SharedRm,
    /// None while nobody looks.
    shown: Arc<Mutex<Option<Arc<Teller>>>>,
}

/// The page's routes. They are read by people and their scripts alike: `/live` is all that is shown, as JSON.
pub fn routes(rm: SharedRm) -> Router {
    let page = Page { rm, shown: Arc::default() };
    Router::new()
        .route("/", get(|| file("text/html; charset=utf-8", include_str!("page/index.html"))))
        .route("/page.css", get(|| file("text/css; charset=utf-8", include_str!("page/page.css"))))
        .route("/page.js", get(|| file("text/javascript; charset=utf-8", include_str!("page/page.js"))))
        .route("/live", get(live))
        .with_state(page)
}

/// A part of the page that is the same for everybody, and says nothing of anybody.
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

/// What is shown, and each change of it, as events of a stream (server-sent events, as of the HTML standard).
async fn live(State(page): State<Page>, Extension(caller): Extension<Caller>) -> Result<Response, ApiError> {
    allow(&page.rm, &caller, Act::Directory, None).await?;
    let Some(shown) = page.look() else {
        return Ok((StatusCode::SERVICE_UNAVAILABLE, "too many look at it already\n").into_response());
    };
    let until = Instant::now() + CONNECTION;
    let told = stream::unfold((shown, true), move |(mut shown, first)| async move {
        // What is there is told at once, and from then on what changes.
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
    /// What is shown, for one more who looks; none if there are too many.
    fn look(&self) -> Option<watch::Receiver<Option<Arc<str>>>> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let teller = shown.get_or_insert_with(|| {
            let teller = Arc::new(Teller::new(None));
            self.rm.errands.spawn("the page's image", keep(self.clone(), teller.clone()));
            teller
        });
        (teller.receiver_count() < VIEWERS).then(|| teller.subscribe())
    }

    /// Whether nobody looks any more. From then on the next viewer begins anew.
    fn let_go(&self, teller: &Teller) -> bool {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let alone = teller.receiver_count() == 0;
        if alone {
            *shown = None;
        }
        alone
    }
}

/// Has the next viewer begin anew, however the image's keeping ended.
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

/// Keeps what is shown true while somebody looks.
async fn keep(page: Page, teller: Arc<Teller>) {
    let Kept { page, teller } = &Kept { page, teller };
    let store = page.rm.visor.store().clone();
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
                // Out of touch is no change of the image.
                stale |= mirror.is_synced() != was_synced;
            }
        }
    }
}
