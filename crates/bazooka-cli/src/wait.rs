//! Waiting until a change has come about, and for how long.
//!
//! Owns patience: what is said of a change that takes a while, and when a command gives up with which cause. Each command
//! that waits says what it sees, and what it has to say of it ([`Waited`]); the deadlines are [`visor::deadlines`].
//!
//! ```text
//! nothing happens     2 s: says who should act and isn't there     15 s: gives up, if somebody isn't
//!                     what an instance may take, and some slack: gives up
//! nothing is known   15 s: gives up; the coordinator is out of touch
//! no room            15 s: gives up with what each host says
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

/// A service.
pub type Service = (AppName, ProcName);

/// What is seen of something that is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look<S> {
    /// Not all of it is known: the coordinator is out of touch, or has yet to tell the rest.
    Partial,
    /// It has yet to come about.
    Waiting(Waiting<S>),
    /// It has come about.
    Done,
}

/// Something that has yet to come about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting<S> {
    /// What is seen of it: as long as that stays the same, nothing happens.
    pub seen: S,
    /// For how long nothing may happen.
    pub limit: Duration,
    /// The services of which an instance has no place.
    pub without_room: Vec<Service>,
}

/// Something that a command waits for.
pub trait Waited {
    /// What is seen of it.
    type Seen: PartialEq;

    /// Waits for a change of what is seen.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    async fn next(&mut self);

    /// Looks at it.
    ///
    /// # Errors
    /// It won't come about.
    fn look(&mut self) -> Result<Look<Self::Seen>>;

    /// The failure of services that have had no place for too long.
    fn no_room(&self, services: &[Service]) -> Failure;

    /// The failure of nothing happening for so long.
    fn late(&self, limit: Duration) -> Failure;

    /// The failure of nobody being there that could act, in the words for that.
    fn nobody(&self, missing: String) -> Failure;

    /// The failure of a coordinator that is out of touch.
    fn out_of_touch(&self) -> Failure {
        Failure::new(Kind::Coordinator, "the coordinator has been out of touch for 15 s; the change stands")
            .hint("`bazooka ps -l` tells how it went on")
    }
}

/// Waits until it has come about.
///
/// # Errors
/// It won't, or takes too long: the change itself stands.
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

/// Waits until a watch shows a change that was made, so that nothing is judged by a view from before it.
///
/// # Errors
/// The coordinator is out of touch.
///
/// # Cancel safety
/// Nothing is lost.
pub async fn shown(context: &Context, watch: &mut Watch, is_shown: impl FnMut(&Watch) -> bool) -> Result<()> {
    wait(context, &mut Showing { watch, is_shown }).await
}

/// A change that a watch has yet to show.
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

/// Waits for a condition until a moment, and returns whether it holds.
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
