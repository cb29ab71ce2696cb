//! The queue of builds: how many run at once on this rm, and who is next.
//!
//! Owns the bound and the order. People take turns: the next build is that of the person with the fewest under way, and
//! of several such, of the one whose last build began first. So one person with twenty pushes delays another's by one
//! build at most. Of one person's, the first to come is the first. A push that goes away leaves the queue, or gives its
//! slot back, by dropping what it holds.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use prometheus_client::metrics::gauge::Gauge;
use tokio_util::sync::CancellationToken;

use crate::{changes::Changing, voice::Voice};

/// The queue of one rm.
pub struct BuildQueue {
    most: usize,
    state: Mutex<State>,
    changed: Changing,
    /// Shows how many wait.
    shown: Gauge,
}

#[derive(Debug, Default)]
struct State {
    /// The number of tickets so far.
    tickets: u64,
    waiting: Vec<Ticket>,
    /// The builds so far.
    begun: u64,
    /// The people who wait or build.
    people: BTreeMap<String, Person>,
}

/// The builds of a person so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Person {
    /// The number of builds under way.
    running: usize,
    /// The number of the last build that began; 0 if there was none.
    last: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Ticket {
    number: u64,
    who: String,
}

/// A place in the queue. Dropping it leaves the queue.
struct Place<'a> {
    queue: &'a Arc<BuildQueue>,
    ticket: Ticket,
}

/// The right to build. Dropping it lets the next one build.
pub struct BuildSlot {
    queue: Arc<BuildQueue>,
    who: String,
}

impl BuildQueue {
    /// Returns an empty queue for this many builds at once. `shown` shows how many wait.
    ///
    /// # Panics
    /// If that is none.
    pub fn new(most: usize, shown: Gauge) -> Arc<BuildQueue> {
        assert!(most > 0, "no build would ever run");
        Arc::new(BuildQueue { most, state: Mutex::default(), changed: Changing::default(), shown })
    }

    /// Waits for the right to build. The pusher reads the place in the queue, and each change of it. Returns `None` if
    /// the push is called off.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the queue.
    pub async fn take(
        self: &Arc<Self>,
        who: &str,
        voice: &Voice,
        cancelled: &CancellationToken,
    ) -> Option<BuildSlot> {
        tokio::select! {
            biased;
            () = cancelled.cancelled() => None,
            slot = self.wait(who, voice) => Some(slot),
        }
    }

    async fn wait(self: &Arc<Self>, who: &str, voice: &Voice) -> BuildSlot {
        let mut changes = self.changed.subscribe();
        let place = Place::enter(self, who);
        let mut told = None;
        loop {
            changes.mark_unchanged();
            match place.ahead() {
                Ok(slot) => return slot,
                Err(ahead) if told != Some(ahead) => {
                    told = Some(ahead);
                    voice.say(format!("waiting for a build: {} in the queue", ordinal(ahead + 1))).await;
                }
                // The sender is this queue's, which outlives the wait.
                Err(_) => drop(changes.changed().await),
            }
        }
    }

    /// Returns the numbers of builds that are under way, and that wait.
    pub fn counts(&self) -> (usize, usize) {
        let state = self.state();
        (state.running(), state.waiting.len())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        let State { people, waiting, .. } = &mut *state;
        people.retain(|name, person| person.running > 0 || waiting.iter().any(|ticket| ticket.who == *name));
        self.shown.set(i64::try_from(waiting.len()).unwrap_or(i64::MAX));
        drop(state);
        self.changed.report();
    }
}

impl<'a> Place<'a> {
    fn enter(queue: &'a Arc<BuildQueue>, who: &str) -> Place<'a> {
        let mut ticket = Ticket { number: 0, who: who.to_owned() };
        queue.change(|state| {
            state.tickets += 1;
            ticket.number = state.tickets;
            state.waiting.push(ticket.clone());
            state.people.entry(who.to_owned()).or_default();
        });
        Place { queue, ticket }
    }

    /// Begins the build if it is its turn; else returns how many are ahead.
    fn ahead(&self) -> Result<BuildSlot, usize> {
        let Ticket { number, who } = &self.ticket;
        let mut state = self.queue.state();
        let free = self.queue.most.saturating_sub(state.running());
        let ahead = state.order().iter().position(|next| next == number).unwrap_or(0);
        if ahead >= free {
            return Err(ahead);
        }
        state.waiting.retain(|ticket| ticket != &self.ticket);
        state.begun += 1;
        let begun = state.begun;
        state.people.entry(who.clone()).or_default().begins(begun);
        Ok(BuildSlot { queue: self.queue.clone(), who: who.clone() })
    }
}

impl Person {
    fn begins(&mut self, build: u64) {
        *self = Person { running: self.running + 1, last: build };
    }
}

impl State {
    fn running(&self) -> usize {
        self.people.values().map(|person| person.running).sum()
    }

    /// Returns the numbers of the waiting tickets in the order in which they will build.
    fn order(&self) -> Vec<u64> {
        let (mut people, mut begun) = (self.people.clone(), self.begun);
        let mut waiting: Vec<&Ticket> = self.waiting.iter().collect();
        let mut order = Vec::new();
        while let Some(at) = (0..waiting.len()).min_by_key(|at| {
            let Ticket { number, who } = waiting[*at];
            (people.get(who).copied().unwrap_or_default(), *number)
        }) {
            let next = waiting.remove(at);
            begun += 1;
            people.entry(next.who.clone()).or_default().begins(begun);
            order.push(next.number);
        }
        order
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // Also after the build has begun: those behind are one place further then.
        self.queue.change(|state| state.waiting.retain(|ticket| ticket != &self.ticket));
    }
}

impl Drop for BuildSlot {
    fn drop(&mut self) {
        self.queue.change(|state| {
            if let Some(person) = state.people.get_mut(&self.who) {
                person.running = person.running.saturating_sub(1);
            }
        });
    }
}

/// Returns a place in words: `1st`, `2nd`, `11th`.
fn ordinal(n: usize) -> String {
    let end = match (n % 10, n % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{n}{end}")
}

/// Returns how many builds a machine bears at once: each has a processor and, up to its limit, its memory.
pub fn builds_at_once(processors: usize, memory_bytes: u64, build_bytes: u64) -> usize {
    let in_memory = usize::try_from(memory_bytes / build_bytes.max(1)).unwrap_or(usize::MAX);
    processors.min(in_memory).max(1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;
    use visor::testing::until;

    use super::*;

    /// Pushers at a queue.
    struct Rig {
        queue: Arc<BuildQueue>,
        begun: mpsc::UnboundedReceiver<(String, BuildSlot)>,
        begins: mpsc::UnboundedSender<(String, BuildSlot)>,
    }

    /// A push: what its pusher reads, and its task.
    struct Pusher {
        reads: mpsc::Receiver<String>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Rig {
        fn new(most: usize) -> Rig {
            let (begins, begun) = mpsc::unbounded_channel();
            Rig { queue: BuildQueue::new(most, Gauge::default()), begun, begins }
        }

        async fn push(&self, who: &str, name: &str) -> Pusher {
            let before = self.queue.state().tickets;
            let (voice, reads) = Voice::new();
            let (queue, begins) = (self.queue.clone(), self.begins.clone());
            let (who, name) = (who.to_owned(), name.to_owned());
            let task = tokio::spawn(async move {
                let slot = queue.take(&who, &voice, &CancellationToken::new()).await;
                let slot = slot.expect("nobody calls it off");
                begins.send((name, slot)).expect("the test reads");
            });
            until("it is in the queue", Duration::from_secs(10), || async {
                if self.queue.state().tickets > before { Ok(()) } else { Err("not yet".to_owned()) }
            })
            .await;
            Pusher { reads, task }
        }

        async fn next(&mut self) -> (String, BuildSlot) {
            self.begun.recv().await.expect("the test holds a sender")
        }
    }

    impl Pusher {
        async fn reads(&mut self) -> String {
            self.reads.recv().await.expect("a line comes")
        }
    }

    #[tokio::test]
    async fn people_take_turns_and_read_how_their_place_moves() {
        let mut rig = Rig::new(1);
        let _first = rig.push("eve", "eve1").await;
        let (name, slot) = rig.next().await;
        assert_eq!(name, "eve1");
        let _second = rig.push("eve", "eve2").await;
        let mut third = rig.push("eve", "eve3").await;
        assert_eq!(third.reads().await, "waiting for a build: 2nd in the queue");
        let mut adas = rig.push("ada", "ada1").await;
        assert_eq!(adas.reads().await, "waiting for a build: 1st in the queue");
        let _adas_second = rig.push("ada", "ada2").await;
        drop(slot);
        let mut built = Vec::new();
        for _ in 0..4 {
            let (name, slot) = rig.next().await;
            assert_eq!(rig.queue.counts().0, 1);
            built.push(name);
            drop(slot);
        }
        assert_eq!(built, ["ada1", "eve2", "ada2", "eve3"]);
        let mut read = Vec::new();
        while let Some(line) = third.reads.recv().await {
            read.push(line);
        }
        assert_eq!(
            read.last().map(String::as_str),
            Some("waiting for a build: 1st in the queue"),
            "{read:?}"
        );
        assert_eq!(rig.queue.counts(), (0, 0));
    }

    #[tokio::test]
    async fn whoever_goes_away_holds_nobody_up() {
        let mut rig = Rig::new(2);
        let (_a, _b) = (rig.push("ada", "a").await, rig.push("bob", "b").await);
        let (first, second) = (rig.next().await, rig.next().await);
        let mut leaves = rig.push("cid", "c").await;
        assert_eq!(leaves.reads().await, "waiting for a build: 1st in the queue");
        let mut stays = rig.push("dan", "d").await;
        assert_eq!(stays.reads().await, "waiting for a build: 2nd in the queue");
        leaves.task.abort();
        assert_eq!(stays.reads().await, "waiting for a build: 1st in the queue");
        drop(first);
        assert_eq!(rig.next().await.0, "d");
        drop(second);
        assert_eq!(rig.queue.counts().1, 0);
    }

    #[test]
    fn places_are_in_words_and_machines_bear_what_they_have() {
        assert_eq!(
            [1, 2, 3, 4, 11, 12, 13, 21, 22, 112].map(ordinal).join(" "),
            "1st 2nd 3rd 4th 11th 12th 13th 21st 22nd 112th"
        );
        assert_eq!(builds_at_once(8, 16 << 30, 2 << 30), 8);
        assert_eq!(builds_at_once(8, 5 << 30, 2 << 30), 2);
        assert_eq!(builds_at_once(2, 1 << 30, 2 << 30), 1);
    }
}
