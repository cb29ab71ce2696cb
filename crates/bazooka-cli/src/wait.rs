//! Waiting for a change to take effect, with a limit.
//!
//! Owns the messages while a change takes long, and when a command gives up and with which cause. Each command that
//! waits implements [`Waited`] to report what it observes and to word its failures; the deadlines are in
//! [`visor::deadlines`].
//!
//! ```text
//! no progress         2 s: names a daemon that should act and isn't there     15 s: gives up, if one isn't
//!                     what an instance may take, and some slack: gives up
//! incomplete view    15 s: gives up; the coordinator is out of touch
//! no room            15 s: gives up with each host's refusal
//! ```

mod patience;

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use visor::{
    names::{AppName, ProcName},
    progress::who_is_missing,
};

use crate::{
    context::Context,
    failure::{Failure, Kind, Result},
    show::say,
    watch::Watch,
};
use patience::{Patience, Step, Why};

/// A service: an app's proc.
pub type Service = (AppName, ProcName);

/// The observed state of a change that a command waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look<S> {
    /// The view is incomplete: the coordinator is out of touch, or hasn't sent everything yet.
    Partial,
    /// The change hasn't taken effect yet.
    Waiting(Waiting<S>),
    /// The change has taken effect.
    Done,
}

/// A change that hasn't taken effect yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting<S> {
    /// The observed state. While it stays equal, there is no progress.
    pub seen: S,
    /// The time without progress after which the command gives up.
    pub limit: Duration,
    /// The services that have an instance without a place.
    pub without_room: Vec<Service>,
}

/// A change that a command waits for.
pub trait Waited {
    /// The observed state of the change.
    type Seen: PartialEq;

    /// Waits for the observed state to change.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    async fn next(&mut self);

    /// Returns the observed state.
    ///
    /// # Errors
    /// If the change can't take effect any more.
    fn look(&mut self) -> Result<Look<Self::Seen>>;

    /// Returns the failure for services that have had an instance without a place for too long.
    fn no_room(&self, services: &[Service]) -> Failure;

    /// Returns the failure for no progress within `limit`.
    fn late(&self, limit: Duration) -> Failure;

    /// Returns the failure for a missing daemon, which `missing` names.
    fn nobody(&self, missing: String) -> Failure;

    /// Returns the failure for a coordinator that is out of touch.
    fn out_of_touch(&self) -> Failure {
        Failure::new(Kind::Coordinator, "the coordinator has been out of touch for 15 s; the change stands")
            .hint("`bazooka ps -l` tells how it went on")
    }
}

/// Waits until a change has taken effect.
///
/// # Errors
/// If it can't, or takes too long; the change itself stands.
///
/// # Cancel safety
/// Nothing is lost.
pub async fn wait(context: &Context, waited: &mut impl Waited) -> Result<()> {
    let mut patience = Patience::new(Instant::now());
    loop {
        let look = waited.look()?;
        let now = Instant::now();
        let step = match look {
            Look::Done => return Ok(()),
            Look::Partial => patience.out_of_touch(now),
            Look::Waiting(waiting) => patience.waits(now, waiting),
        };
        match step {
            Step::Sleep { until } => tokio::select! {
                () = waited.next() => {}
                () = sleep_until(until) => {}
            },
            Step::AskWhoActs { is_last } => match who_is_missing(&context.visor).await {
                Some(missing) if is_last => return Err(waited.nobody(missing)),
                Some(missing) => say(&format!("waiting: {missing}")),
                None => {}
            },
            Step::GiveUp(Why::OutOfTouch) => return Err(waited.out_of_touch()),
            Step::GiveUp(Why::NoRoom(services)) => return Err(waited.no_room(&services)),
            Step::GiveUp(Why::Late(limit)) => return Err(waited.late(limit)),
        }
    }
}

/// Waits until a watch shows the change that was made, so that no decision uses an older view.
///
/// # Errors
/// If the coordinator is out of touch.
///
/// # Cancel safety
/// Nothing is lost.
pub async fn shown(context: &Context, watch: &mut Watch, is_shown: impl FnMut(&Watch) -> bool) -> Result<()> {
    wait(context, &mut Showing { watch, is_shown }).await
}

/// A change that a watch doesn't show yet.
struct Showing<'a, F> {
    watch: &'a mut Watch,
    is_shown: F,
}

impl<F: FnMut(&Watch) -> bool> Waited for Showing<'_, F> {
    type Seen = ();

    async fn next(&mut self) {
        self.watch.next().await;
    }

    fn look(&mut self) -> Result<Look<()>> {
        Ok(if (self.is_shown)(self.watch) { Look::Done } else { Look::Partial })
    }

    fn no_room(&self, _: &[Service]) -> Failure {
        self.out_of_touch()
    }

    fn late(&self, _: Duration) -> Failure {
        self.out_of_touch()
    }

    fn nobody(&self, _: String) -> Failure {
        self.out_of_touch()
    }
}

/// Waits for a condition until `end`, and returns whether it holds.
///
/// # Cancel safety
/// Nothing is lost.
pub async fn until(watch: &mut Watch, end: Instant, mut condition: impl FnMut(&Watch) -> bool) -> bool {
    loop {
        if condition(watch) {
            return true;
        }
        tokio::select! {
            _ = watch.next() => {}
            () = sleep_until(end) => return condition(watch),
        }
    }
}
