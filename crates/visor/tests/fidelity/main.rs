//! The test that the store in memory equals etcd: the same random operations on both, with equal results.
//!
//! Many clients work on a real etcd at once, with leases, compaction, interrupted watches and lost replies. All that
//! happened is then put into an order that explains it, and the model must give the same answers, the same events at
//! the same revisions, and the same watches. The seed is printed; `BAZOOKA_FIDELITY_SEED` sets it, and
//! `BAZOOKA_FIDELITY_ROUNDS` the number of rounds.

mod author;
mod calls;
mod record;
mod replay;

use std::{
    panic::resume_unwind,
    sync::mpsc,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use calls::{Answer, Call, Done, Phase};
use record::Recorder;
use replay::{Replay, Tally};
use tokio::runtime::Runtime;
use visor::store::{
    Entry, Event, Keys, Op, Page, StoreError, Txn, TxnReply,
    model::{Mistake, ModelStore},
};

/// The extent of a run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The seed of all randomness.
    pub seed: u64,
    /// The number of rounds, in which all clients work together and then one works alone.
    pub rounds: usize,
    /// The number of concurrent clients.
    pub clients: usize,
    /// The number of operations of each client in a round.
    pub calls: usize,
}

/// Returns a number from the environment, if it is set.
fn asked(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {value:?}")))
}

fn seed() -> u64 {
    asked("BAZOOKA_FIDELITY_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
        u64::from(now.subsec_nanos())
    })
}

fn real() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be made")
}

#[test]
fn the_model_answers_as_etcd_does_over_a_hundred_thousand_operations() {
    let rounds = asked("BAZOOKA_FIDELITY_ROUNDS").unwrap_or(28);
    let rounds = usize::try_from(rounds).expect("it is a small number");
    let plan = Plan { seed: seed(), rounds, clients: 16, calls: 220 };
    eprintln!("{plan:?}");
    let (recorded, phases) = mpsc::sync_channel::<(usize, &str, Phase)>(2);
    // The comparison of one phase runs while the next is recorded.
    let comparison = thread::spawn(move || {
        let mut replay = Replay::new(ModelStore::new());
        for (round, name, phase) in phases {
            if let Err(mismatch) = replay.phase(&phase) {
                panic!("seed {}, round {round}, {name}: {mismatch}", plan.seed);
            }
        }
        replay.tally
    });
    real().block_on(async {
        let mut recorder = Recorder::new(plan).await;
        for round in 0..=plan.rounds {
            let phases = if round < plan.rounds {
                vec![("together", recorder.together().await), ("alone", recorder.alone().await)]
            } else {
                vec![("the end", recorder.run_out().await)]
            };
            for (name, phase) in phases {
                if recorded.send((round, name, phase)).is_err() {
                    // The comparison failed; its error is shown below.
                    return;
                }
            }
        }
    });
    drop(recorded);
    let tally = comparison.join().unwrap_or_else(|mismatch| resume_unwind(mismatch));
    eprintln!("{tally:?}");
    assert_eq!(missing(&tally), Vec::<&str>::new(), "never came up");
    if asked("BAZOOKA_FIDELITY_ROUNDS").is_none() {
        assert!(tally.operations >= 100_000, "only {} operations were compared", tally.operations);
    }
}

#[test]
fn a_write_whose_line_was_cut_may_be_made_after_what_its_client_did_next() {
    let put = |key: &str, value: &'static str| {
        let put = Op::Put { key: key.to_owned(), value: Bytes::from_static(value.as_bytes()), lease: None };
        Call::Txn(Txn { then: vec![put], ..Txn::default() })
    };
    let made = |key: &str, value: &'static str, revision| {
        let value = Bytes::from_static(value.as_bytes());
        let entry = Entry {
            key: key.to_owned(),
            value,
            create_revision: revision,
            mod_revision: revision,
            lease: None,
        };
        (revision, vec![Event::Put(entry)])
    };
    let empty = Page { entries: Vec::new(), revision: 1 };
    let reply = TxnReply { succeeded: true, revision: 3, found: vec![Vec::new()] };
    let unknown = StoreError::OutcomeUnknown { detail: "the line was cut".to_owned() };
    let program = vec![
        Done { call: put("a", "late"), result: Err(unknown), disturbed: true },
        Done {
            call: Call::Range { keys: Keys::One("a".to_owned()), at: None },
            result: Ok(Answer::Page(empty)),
            disturbed: false,
        },
        Done { call: put("end", "last"), result: Ok(Answer::Txn(reply)), disturbed: false },
    ];
    let history = [made("a", "late", 2), made("end", "last", 3)].into();
    let phase = Phase { programs: vec![program], history, end: 3, ..Phase::default() };
    let mut replay = Replay::new(ModelStore::new());
    assert_eq!(replay.phase(&phase), Ok(()));
    assert_eq!(replay.tally.lost_replies, 1);
}

/// Returns what a comparison should have contained and did not.
fn missing(tally: &Tally) -> Vec<&'static str> {
    let parts = [
        ("writes", tally.writes),
        ("grants", tally.grants),
        ("renewals", tally.renewals),
        ("revocations", tally.revocations),
        ("expiries", tally.expiries),
        ("compactions", tally.compactions),
        ("watches", tally.watches),
        ("cancelled watches", tally.cancelled_watches),
        ("events of watches", tally.events),
        ("lost replies", tally.lost_replies),
        ("lost requests", tally.lost_requests),
        ("refusals", tally.refusals),
    ];
    parts.into_iter().filter(|(_, count)| *count == 0).map(|(name, _)| name).collect()
}

#[test]
fn a_model_with_any_planted_mistake_is_found_out() {
    let plan = Plan { seed: seed(), rounds: 5, clients: 8, calls: 200 };
    eprintln!("{plan:?}");
    let runtime = real();
    let phases: Vec<Phase> = runtime.block_on(async {
        let mut recorder = Recorder::new(plan).await;
        let mut phases = Vec::new();
        for _ in 0..plan.rounds {
            phases.push(recorder.together().await);
            phases.push(recorder.alone().await);
        }
        phases.push(recorder.run_out().await);
        phases
    });
    let compare = |model: ModelStore| {
        let mut replay = Replay::new(model);
        phases.iter().try_for_each(|phase| replay.phase(phase))
    };
    assert_eq!(compare(ModelStore::new()), Ok(()), "without a mistake");
    let mut unnoticed = Vec::new();
    for mistake in Mistake::ALL {
        match compare(ModelStore::with_mistake(mistake)) {
            Ok(()) => unnoticed.push(mistake),
            Err(found) => eprintln!("{mistake:?}: {:.160}", found.lines().next().unwrap_or_default()),
        }
    }
    assert_eq!(unnoticed, [], "with seed {}", plan.seed);
}
