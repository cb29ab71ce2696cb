//! Earlier revs and releases: users run one beside head, or go back to one.
//!
//! Owns the choice of the rev or release. Once there is no rm, only those are chosen whose slugs some machine has.

use visor::{
    keys,
    names::RevId,
    schema::{Promoter, ReleaseStatus},
    transitions::releases::NewRelease,
};

use super::{User, slug_of};

impl User {
    /// Runs some instances of an earlier rev beside head, ends that, or goes back to a release.
    pub(super) async fn run_beside_or_go_back(&mut self) {
        if self.world.chance(0.6) {
            self.run_beside().await;
        } else {
            self.go_back().await;
        }
    }

    async fn run_beside(&self) {
        let revs: Vec<RevId> = self.revs.iter().filter(|rev| self.can_be_had(rev)).cloned().collect();
        if revs.is_empty() {
            return;
        }
        let (rev, proc) = (self.world.pick(&revs).clone(), self.world.pick(&self.procs).clone());
        let count = u32::try_from(self.world.between(0..=4).saturating_sub(2)).expect("it is small");
        // If head is of this rev by then, its own count is meant.
        self.rules.ask(&self.app, &proc, count);
        let scaled = self.visor.scale(&self.app, &proc, count, Some(&rev), "me", self.now()).await;
        self.world.note(format_args!("{} scales {proc} of {} to {count}: {scaled:?}", self.app, rev.short()));
    }

    async fn go_back(&mut self) {
        let Ok(snapshot) = self.visor.read(keys::app(&self.app)).await else { return };
        let Some(view) = snapshot.apps.get(&self.app) else { return };
        let current = view.head_release().map(|(_, row)| row.env);
        let ran = |status| matches!(status, ReleaseStatus::Released | ReleaseStatus::Beside);
        let open = |env| !self.world.revs_are_closed() || Some(env) == current;
        let releases = view.releases.iter();
        let releases: Vec<_> = releases
            .filter(|(_, row)| ran(row.status) && open(row.env) && self.can_be_had(&row.rev))
            .map(|(id, row)| (*id, row.rev.clone(), row.env))
            .collect();
        if releases.is_empty() {
            return;
        }
        let (to, rev, env) = self.world.pick(&releases).clone();
        let token = self.token();
        let new =
            NewRelease { rev: Some(rev), env: Some(env), back_to: Some(to), token, ..NewRelease::default() };
        let begun = self.visor.begin_release(&self.app, &new, Promoter::Converger, None, self.now()).await;
        self.world.note(format_args!("{} goes back to {to}: {begun:?}", self.app));
    }

    /// Reports whether any host can get the slug of a rev, also once there is no rm.
    fn can_be_had(&self, rev: &RevId) -> bool {
        !self.world.revs_are_closed() || self.world.holds(&slug_of(rev))
    }
}
