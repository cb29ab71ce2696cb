//! The neighbour of an instance that means ill: whatever that does, it answers each request and isn't started again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use visor::{names::InstanceId, schema::State, testing::until};

use crate::world::{SERVER, SOON, World, ask};

/// How often it is asked: often enough to meet whatever takes longer, and no load by itself.
const ASK_EVERY: Duration = Duration::from_millis(5);

/// How many are to be answered after the last that its neighbour did.
const AFTERWARDS: u64 = 20;

/// An instance that is asked without a pause.
pub struct Neighbour {
    id: InstanceId,
    pid: Option<u32>,
    answered: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    visitor: Option<JoinHandle<Vec<String>>>,
}

impl Neighbour {
    /// Starts it in this world, and a visitor of it.
    pub async fn of(world: &World) -> Neighbour {
        let id = world.place(world.web(SERVER)).await;
        let status = world.until_state(id, State::Running).await;
        let port = status.port.expect("it has a port");
        let (answered, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, over) = (answered.clone(), ended.clone());
        let visitor = std::thread::spawn(move || {
            let mut lost = Vec::new();
            while !over.load(Ordering::Relaxed) {
                match ask(port) {
                    Ok(line) if line == "HTTP/1.1 200 OK" => drop(count.fetch_add(1, Ordering::Relaxed)),
                    other => lost.push(format!("{other:?}")),
                }
                std::thread::sleep(ASK_EVERY);
            }
            lost
        });
        Neighbour { id, pid: status.pid, answered, ended, visitor: Some(visitor) }
    }

    /// Asserts that it lost no request, and answers still.
    pub async fn stays_well(mut self, world: &World) {
        let before = self.answered.load(Ordering::Relaxed);
        until("the neighbour answers still", SOON, || async {
            let since = self.answered.load(Ordering::Relaxed) - before;
            if since >= AFTERWARDS { Ok(()) } else { Err(since.to_string()) }
        })
        .await;
        self.ended.store(true, Ordering::Relaxed);
        let visitor = self.visitor.take().expect("it is joined once");
        let lost = visitor.join().expect("it doesn't panic");
        assert_eq!(lost, [""; 0], "beside {} that were answered", self.answered.load(Ordering::Relaxed));
        let status = world.status(self.id).await.expect("it was said");
        assert_eq!((status.state, status.restarts, status.pid), (State::Running, 0, self.pid));
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}
