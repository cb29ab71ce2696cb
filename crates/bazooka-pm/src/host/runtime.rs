//! What the engine needs of the machine below it: clocks, processes, slugs, notes.
//!
//! Owns the seam alone. An effect that takes time runs beside the engine and answers by a [`Message`]; no answer
//! ever changes anything by itself. On a machine it is [`super::shims::Shims`].

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use visor::{
    names::{AppName, Digest, EnvRef, InstanceId},
    recover::Found,
    schema::{Check, Handed, Status},
    seal::Vars,
    visor::{Visor, VisorError},
};

use super::{
    model::{Ending, Local, Now, Tick},
    observe::Event,
    records::Note,
    reports::Written,
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

/// Where effects answer. Once the engine has gone, nobody listens, and nobody has to.
#[derive(Clone)]
pub struct Answers(mpsc::UnboundedSender<Message>);

impl Answers {
    /// Where to answer, and where that arrives.
    pub fn channel() -> (Answers, mpsc::UnboundedReceiver<Message>) {
        let (send, receive) = mpsc::unbounded_channel();
        (Answers(send), receive)
    }

    /// Something was seen.
    pub fn seen(&self, event: Event) {
        self.send(Message::Seen(event));
    }

    /// Any answer.
    pub fn send(&self, message: Message) {
        let _ = self.0.send(message);
    }
}
