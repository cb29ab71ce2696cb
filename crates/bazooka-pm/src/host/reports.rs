//! The host's reports: which states of instances are written to the coordinator, and which are still to be written.
//!
//! Owns the way from a change to a written status: in as few transactions as possible, one batch at a time, repeated
//! until it is written, and only under the current registration.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use tokio::time::Instant;
use visor::{
    names::{HostName, InstanceId},
    planted::{Bug, planted},
    schema::Status,
    store::Revision,
    visor::{Visor, VisorError},
};

use super::{
    model::{Local, Phase},
    register::Registered,
    runtime::{Answers, Message, Written},
    status::status,
};

/// The pause before a failed report is repeated.
const REPORT_AGAIN: Duration = Duration::from_millis(200);

/// A host's reports.
pub struct Reports {
    visor: Visor,
    host: HostName,
    address: IpAddr,
    answers: Answers,
    registered: Registered,
    /// The status of each instance as last written.
    said: BTreeMap<InstanceId, Status>,
    unsaid: BTreeSet<InstanceId>,
    /// The revision of the last written status of each instance, where that is certain.
    stands: BTreeMap<InstanceId, Revision>,
    reporting: bool,
    report_at: Instant,
}

/// The outcome of a report.
pub enum ReportOutcome {
    /// The statuses of these instances are written. The instances may have changed since.
    Written(Vec<InstanceId>),
    /// The report failed and has to be repeated.
    Failed,
    /// As `Written`, but this host may have lost its registration or hold another one.
    RegistrationStale(Vec<InstanceId>),
}

impl Reports {
    /// Creates the reports of a host, with nothing written yet.
    pub fn new(visor: Visor, host: HostName, address: IpAddr, answers: Answers) -> Reports {
        Reports {
            visor,
            host,
            address,
            answers,
            registered: None,
            said: BTreeMap::new(),
            unsaid: BTreeSet::new(),
            stands: BTreeMap::new(),
            reporting: false,
            report_at: Instant::now(),
        }
    }

    /// Returns the host's registration.
    pub fn registered(&self) -> Registered {
        self.registered
    }

    /// Notes that the host is registered anew, or no longer. The statuses written before may have gone with the
    /// registration. A registration that was found to stand changes nothing: what was refused under it waits.
    pub fn register(&mut self, registered: Registered, instances: impl Iterator<Item = InstanceId>) {
        if registered == self.registered {
            return;
        }
        if registered.is_some() && !planted(Bug::RegistrationReportsNothing) {
            self.said.clear();
            self.unsaid.extend(instances);
            self.report_at = Instant::now();
        }
        self.registered = registered;
    }

    /// Notes that an instance may have changed.
    pub fn note(&mut self, id: InstanceId, local: &Local) {
        if self.said.get(&id) != Some(&status(local, self.address)) {
            self.unsaid.insert(id);
        }
    }

    /// Drops an instance that is no longer assigned.
    pub fn forget(&mut self, id: InstanceId) {
        self.said.remove(&id);
        self.stands.remove(&id);
        self.unsaid.remove(&id);
    }

    /// Returns when the next report is due without any other event.
    pub fn due_at(&self) -> Option<Instant> {
        (!self.unsaid.is_empty() && self.registered.is_some() && !self.reporting).then_some(self.report_at)
    }

    /// Reports whether everything is written, or can't be.
    pub fn is_done(&self) -> bool {
        self.registered.is_none() || (self.unsaid.is_empty() && !self.reporting)
    }

    /// Writes the outstanding statuses, if it is time.
    pub fn report(&mut self, instances: &BTreeMap<InstanceId, Local>) {
        let Some(created_at) = self.registered else { return };
        if self.reporting || self.unsaid.is_empty() || Instant::now() < self.report_at {
            return;
        }
        let mut batch = Vec::new();
        for id in std::mem::take(&mut self.unsaid) {
            let Some(local) = instances.get(&id) else { continue };
            if matches!(local.phase, Phase::Found | Phase::Adopting) {
                // The last written status stands until it is known whether the instance runs. Then the engine notes
                // the instance again.
                continue;
            }
            batch.push((id, status(local, self.address)));
        }
        if batch.is_empty() {
            return;
        }
        self.reporting = true;
        let (visor, host, answers) = (self.visor.clone(), self.host.clone(), self.answers.clone());
        let known = |(id, _): &(InstanceId, Status)| Some((*id, *self.stands.get(id)?));
        let mut stands: BTreeMap<InstanceId, Revision> = batch.iter().filter_map(known).collect();
        self.answers.spawn("a report", async move {
            let result = visor.report(&host, created_at, &batch, &mut stands).await;
            answers.send(Message::Reported(batch, result.map(|written| (written, stands))));
        });
    }

    /// Processes the end of a report. `is_assigned` tells which instances are still assigned here.
    pub fn take_up(
        &mut self,
        statuses: Vec<(InstanceId, Status)>,
        result: Result<Written, VisorError>,
        is_assigned: impl Fn(InstanceId) -> bool,
    ) -> ReportOutcome {
        self.reporting = false;
        let written = match result {
            Ok((written, stands)) => {
                self.stands.extend(stands);
                written
            }
            Err(error) => {
                // The statuses may have been written, or may yet be.
                self.stands.retain(|id, _| statuses.iter().all(|(doubtful, _)| doubtful != id));
                tracing::warn!(error = %error, "can't report; will say it again");
                if planted(Bug::FailedReportIsDropped) {
                    self.said.extend(statuses);
                    return ReportOutcome::Failed;
                }
                self.unsaid.extend(statuses.into_iter().map(|(id, _)| id));
                self.report_at = Instant::now() + REPORT_AGAIN;
                return ReportOutcome::Failed;
            }
        };
        let (mut stand, mut doubt) = (Vec::new(), false);
        for ((id, status), written) in statuses.into_iter().zip(written) {
            if written {
                self.said.insert(id, status);
                stand.push(id);
            } else if is_assigned(id) {
                // Either the registration is another one, or the instance is no longer assigned and the watch has yet
                // to show it.
                doubt = true;
                if planted(Bug::RefusedReportIsDropped) {
                    self.said.insert(id, status);
                } else {
                    self.unsaid.insert(id);
                }
            }
        }
        if !doubt {
            return ReportOutcome::Written(stand);
        }
        self.report_at = Instant::now() + REPORT_AGAIN;
        ReportOutcome::RegistrationStale(stand)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use jiff::Timestamp;
    use visor::{schema::State, store::model::ModelStore};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refused_report_waits_although_the_registration_is_found_to_stand() {
        const ID: InstanceId = InstanceId(1);
        let (answers, _messages) = Answers::channel();
        let visor = Visor::new(ModelStore::new().shared());
        let host = "host1".parse().expect("a valid name");
        let mut reports = Reports::new(visor, host, Ipv4Addr::LOCALHOST.into(), answers);
        reports.register(Some(7), [ID].into_iter());
        assert_eq!(reports.due_at(), Some(Instant::now()));
        let refused = Ok((vec![false], BTreeMap::new()));
        let status = Status::new(State::Running, Timestamp::UNIX_EPOCH);
        let outcome = reports.take_up(vec![(ID, status)], refused, |_| true);
        assert!(matches!(outcome, ReportOutcome::RegistrationStale(_)));
        let again = Some(Instant::now() + REPORT_AGAIN);
        assert_eq!(reports.due_at(), again);
        reports.register(Some(7), [ID].into_iter());
        assert_eq!(reports.due_at(), again, "the same registration");
        reports.register(None, [ID].into_iter());
        reports.register(Some(9), [ID].into_iter());
        assert_eq!(reports.due_at(), Some(Instant::now()), "another registration reports everything");
    }
}
