//! `bazooka rollback`: makes an earlier release current again, as a new release.
//!
//! The slug exists already, so nothing is built.

use visor::{
    names::{AppName, ReleaseId},
    schema::{Release, ReleaseStatus},
    snapshot::AppView,
    transitions::{releases::NewRelease, rollouts::way_back},
    visor::Refusal,
};

use crate::{
    command::{Audited, CommandKind},
    context::{Context, no_such_release},
    failure::Result,
    release,
    show::put_line,
};

/// Go back to an earlier release: a new release with its rev and its config vars
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The release, for example v3 [default: the one before the current one]
    pub release: Option<ReleaseId>,
    /// Return without waiting until the change is in force
    #[arg(long)]
    pub no_wait: bool,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        CommandKind::Changes(Audited::Words)
    }
}

/// Rolls back.
///
/// # Errors
/// No such release, or none to go back to; a release that can't run any more.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    let app = context.app().await?;
    let view = context.view(&app).await?;
    let (id, target) = target(&app, &view, args.release)?;
    let new = NewRelease {
        rev: Some(target.rev.clone()),
        env: Some(target.env),
        back_to: Some(id),
        by: context.who.clone(),
        reason: format!("rollback to {id}"),
        token: release::token(),
        ..NewRelease::default()
    };
    let before = view.head.as_ref().map(|head| head.release);
    release::make(context, &app, async || Ok(new.clone()), args.no_wait).await?;
    // Git takes the commit of that release for deployed, and pushes it no second time.
    if let Some(before) = before.filter(|before| *before > id) {
        put_line(&format!("to go forward again: bazooka rollback {before}"));
    }
    Ok(())
}

/// Returns the release to go back to: the given one, else the newest earlier head that wasn't aborted and differs
/// from the current head.
fn target<'a>(app: &AppName, view: &'a AppView, to: Option<ReleaseId>) -> Result<(ReleaseId, &'a Release)> {
    view.head_release().ok_or_else(|| Refusal::NotReleased(app.clone()))?;
    if let Some(id) = to {
        let Some(row) = view.releases.get(&id) else { return Err(no_such_release(app, view, id)) };
        return match row.status {
            ReleaseStatus::Released | ReleaseStatus::Beside => Ok((id, row)),
            ReleaseStatus::Failed => Err(Refusal::NeverRan(app.clone(), id).into()),
            ReleaseStatus::Trying | ReleaseStatus::Verified => {
                Err(Refusal::BeingTried(app.clone(), id).into())
            }
        };
    }
    way_back(view).ok_or_else(|| Refusal::NothingToRollBack(app.clone()).into())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use visor::{
        names::EnvRef,
        schema::{Extra, Head},
        snapshot::Versioned,
    };

    use super::*;
    use crate::failure::Kind;

    fn at<T>(value: T) -> Versioned<T> {
        Versioned { value, create_revision: 1, mod_revision: 1, lease: None }
    }

    /// Returns a view with releases v1, v2, ... by rev and status; the last one is the head.
    fn view(releases: &[(u8, ReleaseStatus)]) -> AppView {
        let mut view = AppView::default();
        for (n, (rev, status)) in (1..).zip(releases) {
            let release = Release {
                rev: format!("{rev:040x}").parse().expect("valid"),
                env: EnvRef(0),
                by: "ada".into(),
                at: Timestamp::UNIX_EPOCH,
                reason: "push".into(),
                status: *status,
                cause: None,
                token: String::new(),
                extra: Extra::new(),
            };
            view.releases.insert(ReleaseId(n), at(release));
            if *status == ReleaseStatus::Released {
                view.head = Some(at(Head { release: ReleaseId(n), extra: Extra::new() }));
            }
        }
        view
    }

    #[test]
    fn without_a_word_it_goes_to_the_one_before_that_ran() {
        use ReleaseStatus::{Beside, Failed, Released, Trying};
        let app: AppName = "a".parse().expect("valid");
        let to = |releases: &[(u8, ReleaseStatus)], id: Option<u32>| {
            target(&app, &view(releases), id.map(ReleaseId))
                .map(|(id, _)| id.0)
                .map_err(|failure| failure.kind)
        };
        assert_eq!(to(&[(1, Released), (2, Released)], None), Ok(1));
        assert_eq!(to(&[(1, Released), (2, Failed), (3, Released)], None), Ok(1), "a failed one never ran");
        assert_eq!(to(&[(1, Released), (2, Released), (1, Released)], None), Ok(2), "back and forth");
        assert_eq!(
            to(&[(1, Released), (2, Released), (2, Released)], None),
            Ok(1),
            "the same is no way back"
        );
        assert_eq!(to(&[(1, Released)], None), Err(Kind::Refused));
        assert_eq!(to(&[], None), Err(Kind::Refused));
        assert_eq!(to(&[(1, Released), (2, Beside), (3, Released)], Some(2)), Ok(2));
        assert_eq!(to(&[(1, Released), (2, Failed)], Some(2)), Err(Kind::Refused));
        assert_eq!(to(&[(1, Released), (2, Trying)], Some(2)), Err(Kind::Refused));
        assert_eq!(to(&[(1, Released)], Some(9)), Err(Kind::Unknown));
    }

    #[test]
    fn what_is_pruned_is_not_said_to_have_never_been() {
        let app: AppName = "a".parse().expect("valid");
        let mut view = view(&[(1, ReleaseStatus::Released); 12]);
        view.releases.retain(|id, _| id.0 > 9);
        let words =
            |id: u32| target(&app, &view, Some(ReleaseId(id))).expect_err("it isn't there").to_string();
        assert!(
            words(3).contains("v3 of app 'a' is pruned; the oldest one kept since is v10"),
            "{}",
            words(3)
        );
        assert!(words(13).contains("app 'a' has no release v13"), "{}", words(13));
    }
}
