//! Failures of commands, for people and for scripts.
//!
//! Owns the exit codes and the three parts of an error: what failed, the causes, and a hint that names the next
//! command.

use std::{error::Error, fmt};

use visor::{
    store::StoreError,
    visor::{Refusal, VisorError},
};

use crate::show::clean;

/// The meaning of each exit status, for help.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the change failed or can't converge; it may still be in force: see the message
  2    the command line is wrong
  3    there is no such app, proc, rev, release, instance or host
  4    refused in the current state (owned by another, being tried, being destroyed)
  5    a part of the cluster doesn't answer (bazooka-rm, bazooka-pm)
  6    no coordinator answers
  130  interrupted; a change that was made stays in force and continues";

/// The kind of a failure; its value is the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The change can't converge, or an operation failed.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// No such app, proc, rev, release, instance or host.
    Unknown = 3,
    /// The change isn't allowed in the current state.
    Refused = 4,
    /// A part of the cluster isn't running.
    PartMissing = 5,
    /// No coordinator answers.
    Coordinator = 6,
    /// The user interrupted the command (Ctrl-C).
    Interrupted = 130,
}

/// A failed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind, which gives the exit code.
    pub kind: Kind,
    /// The failed operation, in one line.
    pub what: String,
    /// The causes, the outermost first.
    pub causes: Vec<String>,
    /// A hint at the next command.
    pub hint: Option<String>,
}

/// The result of a command.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// Creates a failure without cause or hint.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Failure { kind, what: what.into(), causes: Vec::new(), hint: None }
    }

    /// Creates a failure that prints nothing; its exit code says all.
    pub fn silent(kind: Kind) -> Self {
        Failure::new(kind, "")
    }

    /// Reports whether the failure prints nothing.
    pub fn is_silent(&self) -> bool {
        self.what.is_empty()
    }

    /// Adds a cause.
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// Creates a failure from an error, with the error and its sources as causes.
    pub fn from_error(kind: Kind, what: impl Into<String>, error: &dyn Error) -> Self {
        let mut failure = Failure::new(kind, what);
        let mut next = Some(error);
        while let Some(error) = next {
            failure.causes.push(error.to_string());
            next = error.source();
        }
        failure
    }

    /// Returns the first of several failures as the error, with the others as its causes; `Ok` if there are none.
    ///
    /// # Errors
    /// The first failure.
    pub fn first_of(failures: Vec<Failure>) -> Result<()> {
        let mut failures = failures.into_iter();
        let Some(first) = failures.next() else { return Ok(()) };
        Err(failures.fold(first, |mut first, other| {
            first.causes.push(other.what);
            first.causes.extend(other.causes);
            first
        }))
    }

    /// Sets the hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", clean(&self.what))?;
        for cause in &self.causes {
            for (at, line) in cause.lines().enumerate() {
                write!(f, "\n{}{}", if at == 0 { "cause: " } else { "       " }, clean(line))?;
            }
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {}", clean(hint))?;
        }
        Ok(())
    }
}

impl Error for Failure {}

impl From<VisorError> for Failure {
    fn from(error: VisorError) -> Self {
        match error {
            VisorError::Store(error) => error.into(),
            VisorError::Refused(refusal) => refusal.into(),
            VisorError::SchemaTooNew { .. } => too_new(&error),
            VisorError::NotSetUp => Failure::new(Kind::Coordinator, error.to_string()).hint(
                "is this the right coordinator and --prefix? Each daemon of a cluster sets it up; \
                 `bazooka dev` runs a local one",
            ),
            VisorError::Unreadable { .. } | VisorError::Contended => {
                Failure::new(Kind::Failed, error.to_string())
            }
        }
    }
}

fn too_new(error: &dyn fmt::Display) -> Failure {
    Failure::new(Kind::Refused, error.to_string())
        .hint("use a bazooka of the cluster's version; `bazooka version` tells this one's")
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::SchemaTooNew { .. } => too_new(&error),
            StoreError::Unreachable { endpoints, detail } => {
                let mut failure = Failure::new(
                    Kind::Coordinator,
                    format!("no coordinator answers at {}", endpoints.join(", ")),
                );
                if !detail.is_empty() {
                    failure = failure.because(detail);
                }
                failure.hint(
                    "name it with --coordinator URL or BAZOOKA_COORDINATOR; `bazooka dev` runs a local one",
                )
            }
            // etcd's message when `--quota-backend-bytes` is exceeded.
            StoreError::Refused { detail } if detail.contains("database space exceeded") => {
                Failure::new(Kind::Failed, "the coordinator is full, and takes no change until it has room")
                    .because(detail)
                    .hint(
                        "what runs goes on; on a machine of the coordinator: etcdctl compact REVISION, \
                         etcdctl defrag on each member, then etcdctl alarm disarm",
                    )
            }
            denied if denied.is_denied() => Failure::new(Kind::Refused, "the coordinator denies you this")
                .because(denied.to_string())
                .hint(
                    "`bazooka whoami` says what you may; one of an app's people grants it: bazooka access grant YOU APP, \
                     an operator the rest",
                ),
            other => Failure::new(Kind::Failed, other.to_string()),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let (kind, hint) = match &refusal {
            Refusal::NoSuchApp(_) => {
                (Kind::Unknown, Some("`bazooka apps` lists them; `bazooka init` registers one"))
            }
            Refusal::NoSuchProc(..) | Refusal::NotInRev(..) => {
                (Kind::Unknown, Some("`bazooka procs` lists the app's procs"))
            }
            Refusal::NoSuchRev(..) => (Kind::Unknown, Some("`bazooka revs` lists the app's revs")),
            Refusal::NoSuchRelease(..) => {
                (Kind::Unknown, Some("`bazooka releases` lists the app's releases"))
            }
            Refusal::Pruned(..) => (Kind::Unknown, Some("`bazooka releases` lists those that are kept")),
            Refusal::TooManyReleases(..) => {
                (Kind::Refused, Some("see that a bazooka-rm and a converger run, and try again in a minute"))
            }
            Refusal::OverQuota { .. } => (
                Kind::Refused,
                Some("`bazooka config` shows the vars, `bazooka config unset NAME` removes one"),
            ),
            Refusal::NoSuchInstance(..) => (Kind::Unknown, Some("`bazooka ps` lists the app's instances")),
            Refusal::NotReleased(_) => (Kind::Refused, Some("push first: git push bazooka master")),
            Refusal::AppExists(..) => (Kind::Refused, Some("take another name: bazooka init NAME")),
            Refusal::BeingTried(..) => {
                (Kind::Refused, Some("`bazooka events` shows the progress; try again when it is done"))
            }
            Refusal::NotBeside(..) => (
                Kind::Refused,
                Some(
                    "run it first: bazooka scale -r REV -n 1 PROC; the current release gets the rest of the traffic",
                ),
            ),
            Refusal::TooMuchTraffic(..) => (Kind::Refused, Some("`bazooka traffic PROC` shows the shares")),
            Refusal::InZones(..) => (
                Kind::Refused,
                Some(
                    "scale the zones down first: bazooka scale -n N --zone ZONE PROC; -n 0 alone takes them all",
                ),
            ),
            Refusal::TooManyServices(..) => {
                (Kind::Refused, Some("move some of the procs to an app of their own"))
            }
            Refusal::OverInstances { .. } => {
                (Kind::Refused, Some("`bazooka procs` shows how many instances each proc should have"))
            }
            Refusal::TooMany(..) => (Kind::Refused, Some("a service has 10,000 at most")),
            Refusal::NoRollout(_) => {
                (Kind::Refused, Some("`bazooka rollback` goes back to an earlier release"))
            }
            Refusal::NeverRan(..) | Refusal::NothingToRollBack(_) => {
                (Kind::Refused, Some("`bazooka releases` lists them with the outcome of each"))
            }
            Refusal::TrialOver(..) => (Kind::Failed, Some("`bazooka releases` shows the outcome")),
            Refusal::NotAdmitted(_) => (
                Kind::Unknown,
                Some(
                    "`bazooka access` lists who is admitted; an operator grants it: bazooka access grant NAME",
                ),
            ),
            Refusal::TooManyKeys(_) => (Kind::Refused, Some("remove one: bazooka keys remove FINGERPRINT")),
            Refusal::NoSuchKey(..) => (Kind::Unknown, Some("`bazooka keys` lists them")),
            Refusal::NotTheirs(..) => (Kind::Unknown, Some("`bazooka access` lists whose each app is")),
            Refusal::HostThere(_) => (
                Kind::Refused,
                Some(
                    "`bazooka hosts drain HOST` first; then stop its bazooka-pm: the host is gone ten seconds later",
                ),
            ),
            Refusal::HostInUse(_) => {
                (Kind::Refused, Some("`bazooka capacity` shows whether other hosts have room for them"))
            }
            Refusal::NotFrozen => (Kind::Refused, Some("`bazooka hosts` lists them")),
            Refusal::Unlinkable(_) => (Kind::Unknown, Some("`bazooka procs -a APP` lists an app's services")),
            Refusal::Destroying(_)
            | Refusal::TurnOver(_)
            | Refusal::EnvMoved(_)
            | Refusal::RepoMoved(_)
            | Refusal::NoPortLeft
            | Refusal::NoNumberLeft(..)
            | Refusal::HostTaken(_)
            | Refusal::NameTaken { .. }
            | Refusal::HostGone(_) => (Kind::Refused, None),
        };
        let failure = Failure::new(kind, refusal.to_string());
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// Returns the name that was probably meant, if one of `names` is similar enough.
pub fn nearest<'a>(said: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(said, name), name))
        .filter(|(distance, name)| {
            let length = name.len().max(said.len());
            // Names with no letter in common aren't a typing error.
            *distance < length && *distance <= 1 + length / 4
        })
        .min()
        .map(|(_, name)| name)
}

/// Creates a failure for a name that doesn't exist, with the nearest name that does.
pub fn unknown<'a>(
    what: String,
    said: &str,
    names: impl IntoIterator<Item = &'a str>,
    list: &str,
) -> Failure {
    let failure = Failure::new(Kind::Unknown, what);
    match nearest(said, names) {
        Some(name) => failure.hint(format!("did you mean '{name}'?")),
        None => failure.hint(format!("`bazooka {list}` lists them")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_when_it_is_near() {
        let names = ["goto-rocket", "goto-moon", "web", "job", "b"];
        for (said, wanted) in [
            ("goto-roket", Some("goto-rocket")),
            ("goto-rocekt", Some("goto-rocket")),
            ("wbe", Some("web")),
            ("weeb", Some("web")),
            ("nothing-like-it", None),
            ("x", None),
            ("a", None),
        ] {
            assert_eq!(nearest(said, names), wanted, "{said}");
        }
    }

    #[test]
    fn an_error_says_what_failed_what_caused_it_and_what_to_do() {
        let unreachable = StoreError::Unreachable {
            endpoints: vec!["http://127.0.0.1:1".into(), "http://127.0.0.1:2".into()],
            detail: "connection refused\u{1b}[31m".into(),
        };
        let failure = Failure::from(unreachable);
        assert_eq!(failure.kind, Kind::Coordinator);
        assert_eq!(
            failure.to_string(),
            "error: no coordinator answers at http://127.0.0.1:1, http://127.0.0.1:2\n\
             cause: connection refused\n\
             hint: name it with --coordinator URL or BAZOOKA_COORDINATOR; `bazooka dev` runs a local one"
        );
    }
}
