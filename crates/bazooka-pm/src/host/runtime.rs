//! The engine's interface to the machine below it: clocks, processes, slugs, notes.
//!
//! Owns only this interface. An effect that takes time runs beside the engine and answers by a [`Message`]; only the
//! engine changes state. The implementation for a real machine is [`super::shims::Shims`].

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::AssertUnwindSafe,
    sync::Arc,
};

use futures::FutureExt;
use jiff::Timestamp;
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    task::JoinHandle,
};
use visor::{
    names::{AppName, Digest, EnvRef, InstanceId},
    recover::Found,
    schema::{Check, Handed, Status},
    seal::Vars,
    store::Revision,
    visor::{Visor, VisorError},
};

use super::{
    model::{Ending, Local, Now, Tick},
    observe::Event,
    pools::Pool,
    records::Note,
};

/// Every user of this host's share is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no user is free on this host")]
pub struct NoFreeUser;

/// A machine that instances run on.
pub trait Runtime: Send {
    /// Returns the current moment on both clocks.
    fn now(&self) -> Now;

    /// Reports whether no process listens on a port.
    fn is_free(&self, port: u16) -> bool;

    /// Returns a user for an instance that isn't among `used`; none where instances have no users of their own.
    ///
    /// # Errors
    /// If every user is in use.
    fn user(&mut self, used: &BTreeSet<u32>) -> Result<Option<u32>, NoFreeUser>;

    /// Reports whether an instance that starts again may have the user that it had. Another range of users may be set
    /// since, and a sandbox has nothing that its user owns.
    fn keeps_user(&self, _uid: u32) -> bool {
        true
    }

    /// Fetches a slug. Answers once it is here or can't be had, and with the cause of each delay.
    fn fetch(&mut self, visor: &Visor, digest: Digest);

    /// Writes an env down, sealed as it is, for a start without the coordinator. Answers once it is written.
    fn keep_env(&mut self, app: AppName, env: EnvRef, handed: Handed);

    /// Deletes the file of an env that no instance has any more.
    fn forget_env(&mut self, app: &AppName, env: EnvRef);

    /// Starts an instance with its vars and services. Answers whether it runs, and when it has ended.
    fn start(&mut self, id: InstanceId, local: &Local, given: Given<'_>);

    /// Finds out what became of a start of an earlier bazooka-pm. Answers as [`Runtime::start`] does.
    fn adopt(&mut self, id: InstanceId, run: u32, started_at: Option<Timestamp>);

    /// Ends an instance: with its stop timeout if it isn't wanted any more, at once otherwise.
    fn end(&mut self, id: InstanceId, why: Ending, local: &Local);

    /// Kills the shim of an instance that couldn't be ended otherwise.
    fn kill(&mut self, id: InstanceId);

    /// Sets the instances that boot and have to pass a check. Answers when one has passed, or with what the check sees
    /// instead.
    fn check(&mut self, booting: BTreeMap<InstanceId, Booting>);

    /// Writes notes down for the next bazooka-pm. Answers when that is done.
    fn write(&mut self, notes: Vec<Note>);

    /// Removes the oldest of the unused slugs, if there are many. Returns the removed ones.
    fn discard(&mut self, unused: Vec<Digest>) -> Vec<Digest>;
}

/// The variables that an instance gets from its env.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// The app's own vars.
    pub vars: &'a Vars,
    /// The address of each linked service, by variable name.
    pub services: &'a BTreeMap<String, String>,
}

/// An instance that boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Booting {
    /// The number of the start.
    pub run: u32,
    /// The time of the start.
    pub since: Tick,
    /// The instance's port.
    pub port: u16,
    /// The instance's user, if it has its own.
    pub uid: Option<u32>,
    /// The check that it must pass.
    pub check: Check,
}

/// An answer of an effect.
pub enum Message {
    /// Something was observed.
    Seen(Event),
    /// The notes have been written.
    Written,
    /// An rm asks what this host has.
    Asked(oneshot::Sender<Found>),
    /// A report has ended: its statuses, and for each whether it is written.
    Reported(Vec<(InstanceId, Status)>, Result<Written, VisorError>),
}

/// For each status of a report, whether it was written; and the revisions of the written statuses.
pub type Written = (Vec<bool>, BTreeMap<InstanceId, Revision>);

/// The most answers that may wait for the engine.
///
/// An instance has one start, one check and one end under way at a time, a slug has one fetch, and the engine takes
/// hundreds of answers between two plans without ever waiting. So even a host on which ten thousand instances end at
/// once stays far below this.
const MOST_ANSWERS: usize = 1 << 16;

/// The reason why effects don't reach the engine any more. Their results would be lost, so bazooka-pm ends and finds
/// its instances again at its next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EffectsBroken {
    /// An effect has panicked.
    #[error("{0} panicked")]
    Panicked(&'static str),
    /// The engine doesn't keep up.
    #[error("{MOST_ANSWERS} answers wait for the engine")]
    Overrun,
}

/// Runs effects and carries their answers. Once the engine has gone, answers are dropped. Cheap to clone.
#[derive(Clone)]
pub struct Answers {
    messages: mpsc::Sender<Message>,
    broken: Arc<watch::Sender<Option<EffectsBroken>>>,
}

impl Answers {
    /// Creates the channel of answers and its receiving end.
    pub fn channel() -> (Answers, mpsc::Receiver<Message>) {
        Answers::bounded(MOST_ANSWERS)
    }

    fn bounded(most: usize) -> (Answers, mpsc::Receiver<Message>) {
        let (messages, received) = mpsc::channel(most);
        (Answers { messages, broken: Arc::new(watch::Sender::new(None)) }, received)
    }

    /// Answers with an event.
    pub fn seen(&self, event: Event) {
        self.send(Message::Seen(event));
    }

    /// Sends an answer.
    pub fn send(&self, message: Message) {
        if let Err(TrySendError::Full(_)) = self.messages.try_send(message) {
            self.broken.send_replace(Some(EffectsBroken::Overrun));
        }
    }

    /// Runs an effect beside the engine. Its owner is the engine, which ends once an effect has panicked
    /// ([`Answers::broken`]).
    pub fn spawn(
        &self,
        name: &'static str,
        effect: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let broken = self.broken.clone();
        tokio::spawn(async move {
            if AssertUnwindSafe(effect).catch_unwind().await.is_err() {
                broken.send_replace(Some(EffectsBroken::Panicked(name)));
            }
        })
    }

    /// Runs a blocking effect on a pool's threads, as [`Answers::spawn`] does.
    pub fn spawn_on(&self, pool: &Pool, name: &'static str, effect: impl FnOnce() + Send + 'static) {
        let (pool, broken) = (pool.clone(), self.broken.clone());
        self.spawn(name, async move {
            if pool.run(effect).await.is_err() {
                broken.send_replace(Some(EffectsBroken::Panicked(name)));
            }
        });
    }

    /// Returns why effects don't reach the engine any more, if so.
    pub fn fault(&self) -> Option<EffectsBroken> {
        *self.broken.borrow()
    }

    /// Waits until effects don't reach the engine any more.
    pub fn broken(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut broken = self.broken.subscribe();
        async move {
            if broken.wait_for(Option::is_some).await.is_err() {
                std::future::pending().await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn fault(answers: &Answers) -> Option<EffectsBroken> {
        tokio::time::timeout(Duration::from_secs(10), answers.broken()).await.expect("it is noticed");
        answers.fault()
    }

    #[tokio::test]
    async fn an_effect_that_panics_is_noticed_by_its_name() {
        let (answers, _messages) = Answers::channel();
        drop(answers.spawn("a start", async {}));
        drop(answers.spawn("a fetch", async { panic!("as a test has it") }));
        assert_eq!(fault(&answers).await, Some(EffectsBroken::Panicked("a fetch")));
        let (answers, _messages) = Answers::channel();
        let pool = Pool::new("test", 1).expect("there is room");
        answers.spawn_on(&pool, "a write", || panic!("as a test has it"));
        assert_eq!(fault(&answers).await, Some(EffectsBroken::Panicked("a write")));
    }

    #[tokio::test]
    async fn an_engine_that_does_not_keep_up_is_noticed_and_one_that_has_gone_is_not() {
        let (answers, messages) = Answers::bounded(2);
        answers.send(Message::Written);
        answers.send(Message::Written);
        assert_eq!(answers.fault(), None);
        answers.send(Message::Written);
        assert_eq!(fault(&answers).await, Some(EffectsBroken::Overrun));
        drop(messages);
        let (answers, messages) = Answers::bounded(1);
        drop(messages);
        answers.send(Message::Written);
        answers.send(Message::Written);
        assert_eq!(answers.fault(), None);
    }
}
