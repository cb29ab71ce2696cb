//! The life of a simulated process: it runs, is paused, or has died.
//!
//! Owns nothing of what a process does. Each of its effects passes the gate first: of a paused process they wait,
//! of a dead one they wait for ever. So one that died leaves exactly what it had done by then.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Poll, Waker},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

/// Woken so often in one moment, a process spins.
const MOST_WAKES: u32 = 500;

/// How a process fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Runs,
    Paused,
    Dead,
}

/// One process's gate. A clone is the same gate.
#[derive(Clone)]
pub struct Gate {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

struct State {
    life: Life,
    /// After so many further effects it dies, or is paused for a time.
    fuse: Option<(u32, Option<Duration>)>,
    wakers: Vec<Waker>,
}

impl Gate {
    /// Of a process that runs.
    pub fn new() -> Gate {
        let state = State { life: Life::Runs, fuse: None, wakers: Vec::new() };
        Gate { state: Arc::new(Mutex::new(state)), changed: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it")
    }

    fn enter(&self, life: Life) {
        let wakers = {
            let mut state = self.state();
            if state.life == Life::Dead {
                return;
            }
            state.life = life;
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
        self.changed.notify_waiters();
    }

    /// It is stopped in its tracks, or goes on.
    pub fn pause(&self, yes: bool) {
        self.enter(if yes { Life::Paused } else { Life::Runs });
    }

    /// It dies now.
    pub fn kill(&self) {
        self.enter(Life::Dead);
    }

    /// It dies at the effect after so many others.
    pub fn kill_after(&self, effects: u32) {
        self.state().fuse = Some((effects, None));
    }

    /// It is stopped in its tracks for this time at the effect after so many others: what it has decided on by then, it
    /// does when it goes on.
    pub fn pause_after(&self, effects: u32, time: Duration) {
        self.state().fuse = Some((effects, Some(time)));
    }

    /// Nothing is to befall it any more.
    pub fn spare(&self) {
        self.state().fuse = None;
        self.pause(false);
    }

    /// Waits while it is paused.
    pub async fn pass(&self) {
        loop {
            // Before the look, so that no change is missed.
            let changed = self.changed.notified();
            if self.state().life == Life::Runs {
                return;
            }
            changed.await;
        }
    }

    /// Passes, and may die of it: between any two effects.
    pub async fn step(&self) {
        self.pass().await;
        let burnt = {
            let mut state = self.state();
            match &mut state.fuse {
                Some((0, _)) => state.fuse.take(),
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            }
        };
        match burnt {
            Some((_, Some(time))) => {
                self.pause(true);
                let gate = self.clone();
                tokio::spawn(async move {
                    sleep(time).await;
                    gate.pause(false);
                });
            }
            Some((_, None)) => self.kill(),
            None => {}
        }
        self.pass().await;
    }

    /// Waits until it has died.
    pub async fn died(&self) {
        loop {
            let changed = self.changed.notified();
            if self.state().life == Life::Dead {
                return;
            }
            changed.await;
        }
    }

    /// Runs a future as this process's own: it gets on only while that runs. `spins` is called if it is
    /// woken again and again without any time passing.
    pub async fn run<T>(&self, future: impl Future<Output = T>, spins: impl Fn()) -> T {
        let mut future = pin!(future);
        let mut woken = (Instant::now(), 0_u32);
        poll_fn(|context| {
            woken = if woken.0 == Instant::now() { (woken.0, woken.1 + 1) } else { (Instant::now(), 0) };
            if woken.1 == MOST_WAKES {
                spins();
            }
            {
                let mut state = self.state();
                if state.life != Life::Runs {
                    state.wakers.push(context.waker().clone());
                    return Poll::Pending;
                }
            }
            future.as_mut().poll(context)
        })
        .await
    }
}
