//! `bazooka whoami`: the user's identity and rights.

use serde::Serialize;
use visor::{keys, names::AppName};

use crate::{
    command::{CommandKind, access::rows},
    context::Context,
    failure::Result,
    show::{put_json, put_line},
};

/// Show your identity, and what you may do
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        CommandKind::Shows
    }
}

#[derive(Serialize)]
struct Me {
    who: String,
    /// `None` in a cluster without identities.
    identity: Option<std::path::PathBuf>,
    not_after: Option<jiff::Timestamp>,
    admitted: bool,
    operator: bool,
    apps: Vec<AppName>,
}

/// Shows the user's identity and rights.
///
/// # Errors
/// Those of the store.
pub async fn run(context: &Context, _: Args) -> Result<()> {
    let mut me = Me {
        who: context.who.clone(),
        identity: None,
        not_after: None,
        admitted: true,
        operator: true,
        apps: Vec::new(),
    };
    if let Some(credentials) = &context.credentials {
        (me.identity, me.not_after) = (Some(credentials.dir().to_owned()), Some(credentials.not_after()));
        let rows = match context.visor.read(vec![keys::identities(), keys::access()]).await {
            Ok(all) => rows(&all),
            // An identity that isn't admitted can't read these rows, but may still learn that.
            Err(visor::visor::VisorError::Store(error)) if error.is_denied() => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let own = rows.into_iter().find(|row| row.who == credentials.identity());
        (me.admitted, me.operator) = own.as_ref().map_or((false, false), |row| (row.admitted, row.operator));
        me.apps = own.map(|row| row.apps).unwrap_or_default();
    }
    if context.json {
        put_json(&me);
        return Ok(());
    }
    put_line(&me.who);
    let Some(not_after) = me.not_after else {
        put_line("this cluster has no identities: everyone may do everything");
        return Ok(());
    };
    let apps: Vec<&str> = me.apps.iter().map(AppName::as_str).collect();
    put_line(match (me.admitted, me.operator) {
        (false, _) => "takes no part yet; an operator lets you in: bazooka access grant YOU",
        (true, false) => "takes part",
        (true, true) => "takes part as operator",
    });
    if !apps.is_empty() {
        put_line(&format!("apps: {}", apps.join(" ")));
    }
    put_line(&format!("certificate until {not_after}"));
    Ok(())
}
