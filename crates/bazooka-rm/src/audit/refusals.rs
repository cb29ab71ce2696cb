//! Refused requests in the audit: who asked for what without the right to it.
//!
//! Owns the bound: a caller who is refused a thousand times a second writes a few entries a minute, and the number of the
//! others. Requests never wait for it.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use axum::{
    extract::{Request, State},
    http::StatusCode,
    middleware::Next,
    response::Response,
};
use bazooka_daemon::CallsFrom;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use visor::{
    identity::{Caller, Identity},
    names::AppName,
    schema::AuditEntry,
    terminal::clean,
};

use super::Auditor;

/// The time to which the bounds apply.
const WINDOW: Duration = Duration::from_secs(60);

/// The entries of one caller in that time.
const OF_ONE: u32 = 5;

/// The entries of all callers in that time.
const OF_ALL: u32 = 60;

/// The refusals that wait to be written. More are only counted.
const WAITING: usize = 64;

/// The most characters of a request in an entry.
const SHOWN: usize = 200;

/// A refused request.
struct Refusal {
    who: Identity,
    from: Option<SocketAddr>,
    app: Option<AppName>,
    request: String,
}

/// Takes note of refusals. Cheap to clone.
#[derive(Clone)]
pub struct Refusals(mpsc::Sender<Refusal>);

/// The writer of refusals.
pub struct RefusalWriter {
    auditor: Auditor,
    refused: mpsc::Receiver<Refusal>,
}

impl Refusals {
    /// Returns the note-taker, and the task that writes the entries.
    pub fn new(auditor: Auditor) -> (Refusals, RefusalWriter) {
        let (sender, refused) = mpsc::channel(WAITING);
        (Refusals(sender), RefusalWriter { auditor, refused })
    }

    /// Serves as a layer: takes note of each request of a known caller that is answered with 403.
    pub async fn note(State(refusals): State<Refusals>, request: Request, next: Next) -> Response {
        let who = match request.extensions().get::<Caller>() {
            Some(Caller::Known(who)) => who.clone(),
            _ => return next.run(request).await,
        };
        let from = request.extensions().get::<CallsFrom>().and_then(|from| from.0);
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = next.run(request).await;
        if response.status() == StatusCode::FORBIDDEN {
            refusals.add(who, from, app_of(&path), &format!("{method} {path}"));
        }
        response
    }

    /// Takes note of a request that was refused. Never waits.
    pub fn add(&self, who: Identity, from: Option<SocketAddr>, app: Option<AppName>, request: &str) {
        let request = clean(request).chars().take(SHOWN).collect();
        if self.0.try_send(Refusal { who, from, app, request }).is_err() {
            tracing::warn!("a refusal isn't in the audit: too many at once");
        }
    }
}

/// Returns the app that a path names.
fn app_of(path: &str) -> Option<AppName> {
    let mut words = path.strip_prefix('/')?.split('/');
    let name = match words.next()? {
        "apps" => words.next()?,
        repository => repository.strip_suffix(".git")?,
    };
    name.parse().ok()
}

impl RefusalWriter {
    /// Writes entries, without end.
    pub async fn run(mut self) {
        let mut budget = Budget::default();
        let mut windows = interval(WINDOW);
        windows.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                refusal = self.refused.recv() => match refusal {
                    Some(refusal) => {
                        if budget.takes(&refusal.who) {
                            let Refusal { who, from, app, request } = refusal;
                            self.write(&who, from, app.as_ref(), format!("refused: {request}")).await;
                        }
                    }
                    // The endpoint has ended, and with it the daemon.
                    None => std::future::pending().await,
                },
                _ = windows.tick() => {
                    for (who, left_out) in budget.renew() {
                        self.write(&who, None, None, format!("refused: {left_out} more requests in a minute")).await;
                    }
                }
            }
        }
    }

    async fn write(&self, who: &Identity, from: Option<SocketAddr>, app: Option<&AppName>, what: String) {
        let noted = self.auditor.note(AuditEntry::REFUSED, who.to_string(), from, what, app).await;
        if let Err(error) = noted {
            tracing::warn!(%who, error = %error, "a refusal isn't in the audit");
        }
    }
}

/// The entries of the present window.
#[derive(Default)]
struct Budget {
    all: u32,
    /// Of each caller, the entries and the requests without one.
    of: BTreeMap<Identity, (u32, u64)>,
}

impl Budget {
    /// Reports whether a refusal of this caller gets an entry.
    fn takes(&mut self, who: &Identity) -> bool {
        let (written, left_out) = self.of.entry(who.clone()).or_default();
        let takes = *written < OF_ONE && self.all < OF_ALL;
        match takes {
            true => (*written, self.all) = (*written + 1, self.all + 1),
            false => *left_out += 1,
        }
        takes
    }

    /// Begins a new window. Returns the callers some of whose requests have no entry; they count in the new one.
    fn renew(&mut self) -> Vec<(Identity, u64)> {
        let before = std::mem::take(self);
        let mut left_out: Vec<(Identity, u64)> = before
            .of
            .into_iter()
            .filter(|(_, (_, left_out))| *left_out > 0)
            .map(|(who, (_, n))| (who, n))
            .collect();
        left_out.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        left_out.truncate(usize::try_from(OF_ALL).expect("it is small"));
        for (who, _) in &left_out {
            self.takes(who);
        }
        left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(name: &str) -> Identity {
        name.parse().expect("valid")
    }

    #[test]
    fn a_flood_of_one_leaves_room_for_others_and_is_counted() {
        let mut budget = Budget::default();
        let written = (0..1_000).filter(|_| budget.takes(&who("eve"))).count();
        assert_eq!(written, 5);
        assert!(budget.takes(&who("ada")));
        assert_eq!(budget.renew(), [(who("eve"), 995)]);
        // The entry about them is one of the new window's.
        assert_eq!((0..10).filter(|_| budget.takes(&who("eve"))).count(), 4);
        assert_eq!(budget.renew(), [(who("eve"), 6)]);
    }

    #[test]
    fn a_flood_of_many_is_bounded_as_well() {
        let mut budget = Budget::default();
        let written = (0..1_000).filter(|n| budget.takes(&who(&format!("p{n}")))).count();
        assert_eq!(written, 60);
        assert_eq!(budget.renew().len(), 60);
        assert!(!budget.takes(&who("ada")), "the entries about them are the window's");
    }

    #[test]
    fn a_refusal_is_the_apps_that_its_path_names() {
        for (path, app) in [
            ("/apps/shop/envs/e1", Some("shop")),
            ("/apps/shop", Some("shop")),
            ("/shop.git/git-receive-pack", Some("shop")),
            ("/apps", None),
            ("/access/grant", None),
            ("/apps/Not a name/envs/e1", None),
        ] {
            assert_eq!(app_of(path), app.map(|app| app.parse().expect("valid")), "{path}");
        }
    }
}
