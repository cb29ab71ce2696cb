//! What the engine needs of the machine below it: clocks, processes, slugs, notes.
//!
//! Owns the seam alone. An effect that takes time runs beside the engine and answers by a [`Message`]; no answer
//! ever changes anything by itself. On a machine it is [`super::shims::Shims`].

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
    records::Note,
};

/// A machine that instances run on.
pub trait Runtime: Send {
    /// Both clocks.
    fn now(&self) -> Now;

    /// Whether nobody listens on a port.
    fn is_free(&self, port: u16) -> bool;

    /// A user for an instance that isn't among `used`; none where instances have no users of their own.
    ///
    /// # Errors
    /// If every one is in use, in words.
    fn user(&mut self, used: &BTreeSet<u32>) -> Result<Option<u32>, String>;

    /// Fetches a slug. Answers once it is here or can't be had, and with the cause of each delay.
    fn fetch(&mut self, visor: &Visor, digest: Digest);

    /// Writes an env down, sealed as it is, for a start without the coordinator. Answers that it is here.
    fn keep_env(&mut self, app: AppName, env: EnvRef, handed: Handed);

    /// Removes what was written down of an env that no instance has any more.
    fn forget_env(&mut self, app: &AppName, env: EnvRef);

    /// Starts an instance with what it is given. Answers whether it runs, and when it has ended.
    fn start(&mut self, id: InstanceId, local: &Local, given: Given<'_>);

    /// Finds out what has become of a start of an earlier bazooka-pm. Answers as [`Runtime::start`] does.
    fn adopt(&mut self, id: InstanceId, run: u32, started_at: Option<Timestamp>);

    /// Has an instance ended: with its grace if it isn't wanted, at once otherwise.
    fn end(&mut self, id: InstanceId, why: Ending, local: &Local);

    /// Ends an instance that couldn't be ended otherwise.
    fn kill(&mut self, id: InstanceId);

    /// Says which instances boot and have to pass a check. Answers when one has, or what it sees instead.
    fn check(&mut self, booting: BTreeMap<InstanceId, Booting>);

    /// Writes notes down for the next bazooka-pm, and answers when that is done.
    fn write(&mut self, notes: Vec<Note>);

    /// Removes the oldest of the slugs that nothing uses, if they are many. Returns which.
    fn discard(&mut self, unused: Vec<Digest>) -> Vec<Digest>;
}

/// What an instance finds in its environment of its env.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// The app's own vars.
    pub vars: &'a Vars,
    /// Each service that the app links, by the variable that has its address.
    pub services: &'a BTreeMap<String, String>,
}

/// An instance that boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Booting {
    /// Which start.
    pub run: u32,
    /// Since when.
    pub since: Tick,
    /// Its port.
    pub port: u16,
    /// Its user, where it has its own.
    pub uid: Option<u32>,
    /// What it must pass.
    pub check: Check,
}

/// An answer of an effect.
pub enum Message {
    /// Something was seen.
    Seen(Event),
    /// The notes have been written.
    Written,
    /// Somebody asks what this host has.
    Asked(oneshot::Sender<Found>),
    /// What was said of instances, and for each whether it stands.
    Reported(Vec<(InstanceId, Status)>, Result<Written, VisorError>),
}

/// For each status of a report whether it was written, and the revisions of what stands.
pub type Written = (Vec<bool>, BTreeMap<InstanceId, Revision>);

/// How many answers may wait for the engine.
///
/// An instance has one start, one check and one end under way at a time, a slug one fetch, and the engine takes up
/// hundreds of answers between two plans without ever waiting for anything. So even a host of ten thousand instances
/// that all end at once stays far below this.
const MOST_ANSWERS: usize = 1 << 16;

/// Effects don't reach the engine any more: what they have done would be forgotten, so bazooka-pm ends and finds its
/// instances again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EffectsBroken {
    /// One has panicked.
    #[error("{0} panicked")]
    Panicked(&'static str),
    /// The engine doesn't keep up.
    #[error("{MOST_ANSWERS} answers wait for the engine")]
    Overrun,
}

/// Where effects run and answer. Once the engine has gone, nobody listens, and nobody has to. Cheap to clone.
#[derive(Clone)]
pub struct Answers {
    messages: mpsc::Sender<Message>,
    broken: Arc<watch::Sender<Option<EffectsBroken>>>,
}

impl Answers {
    /// Where to answer, and where that arrives.
    pub fn channel() -> (Answers, mpsc::Receiver<Message>) {
        Answers::bounded(MOST_ANSWERS)
    }

    fn bounded(most: usize) -> (Answers, mpsc::Receiver<Message>) {
        let (messages, received) = mpsc::channel(most);
        (Answers { messages, broken: Arc::new(watch::Sender::new(None)) }, received)
    }

    /// Something was seen.
    pub fn seen(&self, event: Event) {
        self.send(Message::Seen(event));
    }

    /// Any answer.
    pub fn send(&self, message: Message) {
        if let Err(TrySendError::Full(_)) = self.messages.try_send(message) {
            self.broken.send_replace(Some(EffectsBroken::Overrun));
        }
    }

    /// Runs an effect beside the engine.
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

    /// As [`Answers::spawn`], for what blocks.
    pub fn spawn_blocking(&self, name: &'static str, effect: impl FnOnce() + Send + 'static) {
        let broken = self.broken.clone();
        tokio::task::spawn_blocking(move || {
            if std::panic::catch_unwind(AssertUnwindSafe(effect)).is_err() {
                broken.send_replace(Some(EffectsBroken::Panicked(name)));
            }
        });
    }

    /// Why effects don't reach the engine any more, if so.
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
        answers.spawn_blocking("a write", || panic!("as a test has it"));
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
