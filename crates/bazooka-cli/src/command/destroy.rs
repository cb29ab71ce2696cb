//! `bazooka destroy`: removes an app, with its instances, its releases and its repository.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    time::Duration,
};

use tokio::time::Instant;
use visor::names::AppName;

use crate::{
    command::{Audited, CommandKind},
    context::{Context, REMOTE, app_of, git},
    failure::{Failure, Kind, Result},
    rm,
    settle::{self, Line},
    show::put_line,
    wait::until,
    watch::Watch,
};

/// Stop and delete an app, with its repository
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The app's name again; the command then asks nothing
    #[arg(long, value_name = "APP")]
    pub confirm: Option<AppName>,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        CommandKind::Changes(Audited::ByRm)
    }
}

/// The time that destroying may take: draining (30 s), stopping (30 s unless set otherwise), and deleting the rows.
const GONE_IN: Duration = Duration::from_secs(120);

/// Destroys an app, after the user has repeated its name.
///
/// # Errors
/// A wrong name; no such app; no bazooka-rm; instances that don't end.
pub async fn run(context: &Context, args: Args) -> Result<()> {
    let app = context.app().await?;
    let view = context.view(&app).await?;
    match args.confirm {
        Some(said) if said == app => {}
        Some(said) => {
            return Err(Failure::new(
                Kind::Usage,
                format!("--confirm says '{said}', but the app is '{app}'"),
            ));
        }
        None => {
            let (asked, instances) = (app.clone(), view.instances.len());
            // On a thread of its own, because this thread waits for Ctrl-C.
            let asking = tokio::task::spawn_blocking(move || ask(&asked, instances));
            asking.await.map_err(|error| Failure::new(Kind::Failed, error.to_string()))??;
        }
    }
    let mut watch = Watch::open(context.visor.store().clone(), app.clone()).await;
    rm::destroy(context, &app).await?;
    context.note_change();
    let mut line = Line::begin(&format!("app '{app}' is being destroyed"));
    let mut left = watch.view().instances.len();
    let is_gone = until(&mut watch, Instant::now() + GONE_IN, |watch| {
        let now = watch.view().instances.len();
        line.dots(left.saturating_sub(now));
        left = now;
        watch.view().app.is_none()
    })
    .await;
    if !is_gone {
        drop(line);
        let what = format!("app '{app}' is not gone after {} s; it stays marked", GONE_IN.as_secs());
        return Err(Failure::new(Kind::Failed, what).hint(format!("bazooka ps -l -a {app}")));
    }
    drop(line);
    put_line(&format!("app '{app}' destroyed"));
    if context.remote_url().await.is_some_and(|url| app_of(url).as_ref() == Some(&app))
        && git(&["remote", "remove", REMOTE]).await.is_some()
    {
        put_line("remote entry removed");
    }
    Ok(())
}

fn ask(app: &AppName, instances: usize) -> Result<()> {
    let hint = format!("bazooka destroy -a {app} --confirm {app}");
    if !io::stdin().is_terminal() {
        let what = "there is nobody to ask whether the app shall really be destroyed";
        return Err(Failure::new(Kind::Usage, what).hint(hint));
    }
    let mut words = io::stderr().lock();
    // If the question can't be printed, there is no answer, and nothing is destroyed.
    let _ = write!(
        words,
        "This ends {} of '{app}' and removes its releases and its repository.\n\
         Type the app's name to go on: ",
        settle::instances(u32::try_from(instances).unwrap_or(u32::MAX))
    )
    .and_then(|()| words.flush());
    // Release standard error for other messages while the question waits.
    drop(words);
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && answer.trim() == app.as_str() {
        return Ok(());
    }
    Err(Failure::new(Kind::Failed, "that is not the app's name: nothing was destroyed"))
}
