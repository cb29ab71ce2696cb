//! A user's control of a rollout: pause, resume, abort.
//!
//! A rollout is the difference between head and what runs, not an object. So a pause is a row beside the app that keeps
//! this difference as it is, and an abort moves head back to the release whose instances still run.

use jiff::Timestamp;

use crate::{
    keys::{self, Key},
    names::{AppName, ReleaseId},
    schema::{Extra, Head, Pause, Promoter, Release, ReleaseStatus},
    snapshot::AppView,
    store::Keys,
    transitions::{apps::registered, releases::failure},
    visor::{Change, Decided, Decision, Refusal, Result, Visor},
};

/// The outcome of an abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aborted {
    /// The trial has ended; head is unchanged.
    Trial,
    /// Head is this release again.
    BackTo(ReleaseId),
}

impl Visor {
    /// Pauses an app's rollouts, or resumes them. Returns whether that changed anything.
    ///
    /// # Errors
    /// [`Refusal::NoSuchApp`], [`Refusal::Destroying`].
    pub async fn pause_rollouts(
        &self,
        name: &AppName,
        pause: bool,
        by: &str,
        now: Timestamp,
    ) -> Result<bool> {
        let (own, key) = (Key::App(name.clone()), Key::Pause(name.clone()));
        let scopes = [&own, &key].map(|key| Keys::One(key.to_string()));
        self.decide(scopes.to_vec(), |snapshot| {
            let app = registered(snapshot, name)?;
            if app.destroying {
                return Err(Refusal::Destroying(name.clone()).into());
            }
            let before = snapshot.apps[name].pause.as_ref();
            if before.is_some() == pause {
                return Ok(Decision::Already(false));
            }
            let change = Change::new().as_read(&own, Some(app)).as_read(&key, before);
            let row = Pause { by: by.into(), at: now, extra: Extra::new() };
            Ok(Decision::Change(if pause { change.put(&key, &row) } else { change.delete(&key) }, true))
        })
        .await
        .map(Decided::into_value)
    }

    /// Aborts the rollout of `release`, during its trial or after it.
    ///
    /// A release on trial is marked failed. Once it is head, head moves back to the previous release, of which
    /// instances still run. Those are not touched, and instances of `release` are stopped as the others come back. The
    /// abort also ends a pause.
    ///
    /// # Errors
    /// [`Refusal::NoSuchApp`]; [`Refusal::NoRollout`] if it is neither on trial nor head, or all of it runs already;
    /// [`Refusal::NothingToRollBack`]; [`Refusal::BeingTried`] between the moment when a push's trial is verified and
    /// the moment when its release becomes head.
    pub async fn abort_rollout(&self, name: &AppName, release: ReleaseId, by: &str) -> Result<Aborted> {
        self.decide(keys::app(name), |snapshot| {
            registered(snapshot, name)?;
            let view = &snapshot.apps[name];
            let (Some(row), head) = (view.releases.get(&release), view.head.as_ref()) else {
                return Err(Refusal::NoRollout(name.clone()).into());
            };
            let cause = format!("aborted by {by}");
            if let Some(trial) = view.trial.as_ref().filter(|trial| trial.release == release) {
                // The branch has moved already; a release that failed now would be made again.
                if trial.promote == Promoter::Pusher && row.status == ReleaseStatus::Verified {
                    return Err(Refusal::BeingTried(name.clone(), release).into());
                }
                return Ok(Decision::Change(failure(name, view, release, row, &cause), Aborted::Trial));
            }
            let current = head.map(|head| head.release);
            match current {
                Some(current) if current == release => {}
                // An earlier attempt of this call, whose reply was lost, did it.
                Some(current) if row.was_aborted() => return Ok(Decision::Already(Aborted::BackTo(current))),
                _ if row.status == ReleaseStatus::Failed => return Ok(Decision::Already(Aborted::Trial)),
                _ => return Err(Refusal::NoRollout(name.clone()).into()),
            }
            if !is_rolling(view) {
                return Err(Refusal::NoRollout(name.clone()).into());
            }
            let (to, _) = before(view, release).ok_or_else(|| Refusal::NothingToRollBack(name.clone()))?;
            let (key, head_key, pause_key) =
                (Key::Release(name.clone(), release), Key::Head(name.clone()), Key::Pause(name.clone()));
            let aborted = Release { cause: Some(cause), ..row.value.clone() };
            let extra = head.map(|head| head.extra.clone()).unwrap_or_default();
            let change = Change::new()
                .as_read(&key, Some(row))
                .as_read(&head_key, head)
                .absent(&Key::Trial(name.clone()))
                .exists(&Key::Release(name.clone(), to))
                .put(&key, &aborted)
                .put(&head_key, &Head { release: to, extra })
                .delete(&pause_key);
            Ok(Decision::Change(change, Aborted::BackTo(to)))
        })
        .await
        .map(Decided::into_value)
    }
}

/// Reports whether instances exist of a release that was head and is no longer.
pub fn is_rolling(view: &AppView) -> bool {
    let head = view.head.as_ref().map(|head| head.release);
    let trial = view.trial.as_ref().map(|trial| trial.release);
    view.instances.values().any(|row| {
        Some(row.release) != head
            && Some(row.release) != trial
            && !view.wanted(&row.proc).contains_key(&row.release)
    })
}

/// Returns the last release that was head before this one and was not aborted.
pub fn before(view: &AppView, release: ReleaseId) -> Option<(ReleaseId, &Release)> {
    let mut earlier = view.releases.range(..release).rev();
    earlier
        .find(|(_, row)| row.status == ReleaseStatus::Released && !row.was_aborted())
        .map(|(id, row)| (*id, &row.value))
}

/// Returns the release that a rollback without a name goes back to: the newest earlier head that was not aborted and
/// differs from head.
pub fn way_back(view: &AppView) -> Option<(ReleaseId, &Release)> {
    let (head, current) = view.head_release()?;
    let mut earlier = view.releases.range(..head).rev();
    earlier
        .find(|(_, row)| {
            row.status == ReleaseStatus::Released
                && !row.was_aborted()
                && (&row.rev, row.env) != (&current.rev, current.env)
        })
        .map(|(id, row)| (*id, &row.value))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::{
        names::{InstanceId, RevId},
        schema::{Instance, Rev, Slug},
        store::model::{Fate, ModelStore},
        transitions::releases::{Begun, NewRelease},
        visor::VisorError,
    };

    fn now() -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn a() -> AppName {
        "a".parse().expect("valid")
    }

    /// Creates an app that wants one `web`, with v1 as head and an instance of it, and v2 on trial.
    async fn trying(visor: &Visor, promote: Promoter) {
        visor.set_up().await.expect("the model answers");
        visor.register_app(&a(), "ada", "t", now()).await.expect("it is free");
        for n in 1..=2 {
            release(visor, n, promote).await;
            if n == 1 {
                visor.scale(&a(), &web(), 1, None, "ada", now()).await.expect("it is released");
                place(visor, 1, 1).await;
            }
        }
    }

    fn web() -> crate::names::ProcName {
        "web".parse().expect("valid")
    }

    async fn release(visor: &Visor, n: usize, promote: Promoter) -> Begun {
        let id: RevId = format!("{n:040x}").parse().expect("valid");
        let rev = Rev {
            slug: Slug { sha256: "0".repeat(64).parse().expect("valid"), size_bytes: 1 },
            procs: BTreeMap::from([(web(), "run".to_owned())]),
            kind: "procfile".into(),
            by: "ada".into(),
            at: now(),
            subject: String::new(),
            extra: Extra::new(),
        };
        visor.register_rev(&a(), &id, &rev, &BTreeSet::new()).await.expect("the app is there");
        let new = NewRelease { rev: Some(id), token: format!("t{n}"), ..NewRelease::default() };
        visor.begin_release(&a(), &new, promote, None, now()).await.expect("nothing else is tried")
    }

    async fn place(visor: &Visor, id: u64, release: u32) {
        let instance = Instance {
            host: "host1".parse().expect("valid"),
            proc: web(),
            release: ReleaseId(release),
            rev: format!("{release:040x}").parse().expect("valid"),
            index: 0,
            placed_at: now(),
            reason: String::new(),
            extra: Extra::new(),
        };
        let change = Change::new().put(&Key::Instance(a(), InstanceId(id)), &instance);
        visor.commit(change).await.expect("the model answers");
    }

    /// Verifies v2 as the converger does, and moves head.
    async fn promoted(visor: &Visor) {
        let view = view(visor).await;
        let (id, trial) = (ReleaseId(2), view.trial.as_ref().expect("it is on trial"));
        let change = crate::transitions::releases::verification(&a(), &view, id, &view.releases[&id], trial);
        visor.commit(change).await.expect("the model answers");
    }

    async fn view(visor: &Visor) -> AppView {
        visor.read(keys::app(&a())).await.expect("the model answers").apps.remove(&a()).expect("it is there")
    }

    fn head(view: &AppView) -> u32 {
        view.head.as_ref().expect("it was released").release.0
    }

    #[tokio::test]
    async fn a_pause_is_one_row_and_said_once() {
        let visor = Visor::new(ModelStore::new().shared());
        trying(&visor, Promoter::Converger).await;
        for (pause, changes) in [(true, true), (true, false), (false, true), (false, false)] {
            let changed = visor.pause_rollouts(&a(), pause, "ada", now()).await.expect("the model answers");
            assert_eq!((changed, view(&visor).await.pause.is_some()), (changes, pause));
        }
    }

    #[tokio::test]
    async fn an_aborted_trial_fails_and_head_stays() {
        let visor = Visor::new(ModelStore::new().shared());
        trying(&visor, Promoter::Converger).await;
        for _ in 0..2 {
            let aborted = visor.abort_rollout(&a(), ReleaseId(2), "ada").await.expect("it is on trial");
            assert_eq!(aborted, Aborted::Trial, "also when it is said again");
        }
        let view = view(&visor).await;
        let failed = &view.releases[&ReleaseId(2)];
        assert_eq!((failed.status, failed.cause.as_deref()), (ReleaseStatus::Failed, Some("aborted by ada")));
        assert_eq!((head(&view), view.trial), (1, None));
    }

    #[tokio::test]
    async fn a_push_whose_branch_moves_is_not_failed_under_it() {
        let visor = Visor::new(ModelStore::new().shared());
        trying(&visor, Promoter::Pusher).await;
        promoted(&visor).await;
        let aborted = visor.abort_rollout(&a(), ReleaseId(2), "ada").await;
        assert!(matches!(aborted, Err(VisorError::Refused(Refusal::BeingTried(..)))), "{aborted:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_aborted_rollout_moves_head_back_once_whatever_is_lost() {
        let store = ModelStore::new();
        let visor = Visor::new(store.shared());
        trying(&visor, Promoter::Converger).await;
        visor.pause_rollouts(&a(), true, "ada", now()).await.expect("the model answers");
        promoted(&visor).await;
        place(&visor, 2, 2).await;
        let client = store.client();
        let unsure = Visor::new(client.shared());
        client.faults().next_writes([Fate::LoseReply]);
        let aborted = unsure.abort_rollout(&a(), ReleaseId(2), "ada").await.expect("it is rolling");
        assert_eq!(aborted, Aborted::BackTo(ReleaseId(1)));
        let now = view(&visor).await;
        assert_eq!((head(&now), now.pause.is_some()), (1, false));
        assert!(now.releases[&ReleaseId(2)].was_aborted());
        // v2's instance still exists, but the second abort goes back no further.
        let again = visor.abort_rollout(&a(), ReleaseId(2), "ada").await.expect("it was called off");
        assert_eq!(again, Aborted::BackTo(ReleaseId(1)));
        let first = visor.abort_rollout(&a(), ReleaseId(1), "ada").await;
        assert!(matches!(first, Err(VisorError::Refused(Refusal::NothingToRollBack(_)))), "{first:?}");
    }

    #[tokio::test]
    async fn what_runs_whole_is_not_aborted() {
        let visor = Visor::new(ModelStore::new().shared());
        trying(&visor, Promoter::Converger).await;
        promoted(&visor).await;
        let gone = Change::new().delete(&Key::Instance(a(), InstanceId(1)));
        visor.commit(gone).await.expect("the model answers");
        place(&visor, 2, 2).await;
        let aborted = visor.abort_rollout(&a(), ReleaseId(2), "ada").await;
        assert!(matches!(aborted, Err(VisorError::Refused(Refusal::NoRollout(_)))), "{aborted:?}");
    }
}
