//! `bazooka git-credential`: git's credential helper for repositories of a cluster with identities
//! (gitcredentials(7)).
//!
//! Owns that protocol. `init` configures it for one repository's URL. It needs no coordinator, and stores nothing.

use std::{collections::BTreeMap, io::Read};

use bazooka_daemon::{
    git_token::{self, Purpose, SERVICES},
    in_words,
};
use jiff::Timestamp;
use visor::identity::Credentials;

use crate::{
    command::CommandKind,
    context::app_of,
    failure::{Failure, Kind, Result},
    invocation::Invocation,
    show::put,
};

/// Answer git, which asks who pushes
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct Args {
    /// Answer for this repository's URL alone
    #[arg(long = "for", value_name = "URL")]
    pub repository: Option<String>,
    /// What git does
    pub operation: String,
}

impl Args {
    /// Returns the kind of the command.
    pub fn kind(&self) -> CommandKind {
        CommandKind::Local { prints_json: false }
    }
}

/// The size limit of git's request, which has a few lines, in bytes.
const MOST: u64 = 64 << 10;

/// Answers git's request. Operations other than `get` need no answer, because tokens aren't stored.
///
/// # Errors
/// No identity; a request that names no app, or another repository.
pub fn run(invocation: &Invocation, args: Args) -> Result<()> {
    let credentials = invocation.coordinator()?.identity.open();
    let credentials = credentials.map_err(|error| Failure::new(Kind::Usage, in_words(&error)))?;
    if args.operation != "get" {
        return Ok(());
    }
    let credentials = credentials.ok_or_else(|| {
        Failure::new(Kind::Usage, "git asks for an identity, and there is none")
            .hint("name its folder with BAZOOKA_IDENTITY, or run `bazooka init` here again")
    })?;
    let mut asked = String::new();
    std::io::stdin()
        .take(MOST)
        .read_to_string(&mut asked)
        .map_err(|error| Failure::from_error(Kind::Failed, "git's question can't be read", &error))?;
    put(&answer(&credentials, &asked, args.repository.as_deref(), Timestamp::now())?);
    Ok(())
}

fn answer(credentials: &Credentials, asked: &str, only: Option<&str>, now: Timestamp) -> Result<String> {
    let said: BTreeMap<&str, &str> = asked.lines().filter_map(|line| line.split_once('=')).collect();
    let wrong = |what: String| Failure::new(Kind::Usage, what);
    // Whoever has a token can act as its user, so it is never sent without TLS.
    if said.get("protocol") != Some(&"https") {
        return Err(wrong("a token goes over https alone".into()));
    }
    let (host, path) = (said.get("host").copied().unwrap_or_default(), said.get("path").copied());
    let (app, path) = path.and_then(|path| Some((app_of(path)?, path))).ok_or_else(|| {
        wrong("git doesn't say which app it is about".into())
            .hint("`bazooka init` sets credential.useHttpPath for it; run it here again")
    })?;
    let repository = format!("https://{host}/{path}");
    if let Some(only) = only.filter(|only| *only != repository) {
        return Err(wrong(format!("a token is asked for {repository}, and this repository's is {only}"))
            .hint("if that is where you push to now: `bazooka init` sets git up for it"));
    }
    let purpose = Purpose { app: &app, repository: &repository, service: service(asked) };
    let token = git_token::mint(credentials, &purpose, now)
        .map_err(|error| Failure::from_error(Kind::Failed, "no token can be made", &error))?;
    let until = now.as_second() + i64::try_from(git_token::LIFETIME.as_secs()).expect("it is short");
    Ok(format!("username={}\npassword={token}\npassword_expiry_utc={until}\n", credentials.identity()))
}

/// Returns the service that bazooka-rm's refusal named, which git from 2.41 on passes on.
fn service(asked: &str) -> Option<&'static str> {
    let challenges = asked.lines().filter_map(|line| line.strip_prefix("wwwauth[]="));
    let named = challenges.flat_map(|challenge| challenge.split(['"', ' ', ',', '=']));
    let mut named = named.filter_map(|word| SERVICES.into_iter().find(|service| *service == word));
    // Of two, neither is meant for certain.
    named.next().filter(|_| named.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_the_one_that_the_refusal_names() {
        let challenge = "wwwauth[]=Basic realm=\"bazooka\", charset=\"UTF-8\", service=\"git-receive-pack\"";
        assert_eq!(service(&format!("protocol=https\nhost=a\n{challenge}\n")), Some("git-receive-pack"));
        for none in
            ["protocol=https\nhost=a", "wwwauth[]=Basic realm=\"git-receive-pack-2\"", "path=git-upload-pack"]
        {
            assert_eq!(service(none), None, "{none}");
        }
        let other = challenge.replace("receive", "upload");
        assert_eq!(service(&format!("{challenge}\n{other}")), None);
    }
}
