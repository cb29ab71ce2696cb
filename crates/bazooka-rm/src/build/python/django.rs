//! Django's static files, collected at the end of a build as Heroku does.
//!
//! Owns the decision whether there is anything to collect. Django itself reads the app's settings.

use super::{
    super::{BuildError, Work, run::Runner},
    VENV,
};

/// Django's program in an app.
pub(super) const MANAGE: &str = "manage.py";

/// The variable by which an app has its static files left alone.
const DISABLE: &str = "DISABLE_COLLECTSTATIC";

/// Prints one word on the app: whether its settings say where files are collected. Fails without Django, and if Django
/// can't load the settings.
const ASK: &str = include_str!("django.py");

/// The treatment of an app's static files.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decision {
    Collect,
    /// Nothing, with a line for the pusher if that may surprise.
    Leave(Option<String>),
}

/// Collects the static files, if the app is one of Django's and has a place for them.
///
/// # Errors
/// [`BuildError::Failed`], if Django can't collect them.
pub(super) async fn collect(work: &Work<'_>, runner: &Runner<'_>) -> Result<(), BuildError> {
    if work.place.variable(DISABLE).is_some_and(|value| !value.is_empty() && value != "0") {
        work.voice.say(format!("{DISABLE} is set: static files are not collected")).await;
        return Ok(());
    }
    let python = work.place.seen().join(VENV).join("bin/python3");
    let asked = runner.ask(work.place, &python, &["-c", ASK]).await;
    let answer = match asked {
        Ok(answer) => answer,
        // Without Django, and with settings that take a config var, the script ends with a failure.
        Err(BuildError::Failed { .. }) => {
            let has_django = runner.ask(work.place, &python, &["-c", "import django"]).await;
            if has_django.is_ok() { "FAILED".to_owned() } else { String::new() }
        }
        Err(error) => return Err(error),
    };
    match decide(&answer) {
        Decision::Collect => {
            let words = [MANAGE, "collectstatic", "--noinput"];
            work.voice.say(format!("$ python3 {}", words.join(" "))).await;
            runner.run(&python, &words).await
        }
        Decision::Leave(line) => {
            if let Some(line) = line {
                work.voice.say(line).await;
            }
            Ok(())
        }
    }
}

/// Returns what follows from the script's answer, which may come after what the app's settings print.
fn decide(answer: &str) -> Decision {
    let word = answer.lines().rev().find_map(|line| line.strip_prefix("ANSWER ")).map(str::trim);
    match word {
        Some("COLLECT") => Decision::Collect,
        Some("NO-ROOT") => Decision::Leave(Some(
            "static files are not collected: the settings have no STATIC_ROOT".to_owned(),
        )),
        Some(_) => Decision::Leave(None),
        None if answer == "FAILED" => Decision::Leave(Some(
            "static files are not collected: Django can't load the app's settings here (a build sees no config var; a \
             setting that takes one needs a default); `python3 manage.py check` shows the cause"
                .to_owned(),
        )),
        None => Decision::Leave(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_collected_where_the_settings_have_a_place_for_them() {
        assert_eq!(decide("loading\n\nANSWER COLLECT\n"), Decision::Collect);
        assert_eq!(decide("ANSWER NO-APP\n"), Decision::Leave(None));
        assert_eq!(decide(""), Decision::Leave(None));
        for (answer, words) in
            [("ANSWER NO-ROOT\n", "no STATIC_ROOT"), ("FAILED", "can't load the app's settings")]
        {
            let decision = decide(answer);
            assert!(matches!(&decision, Decision::Leave(Some(line)) if line.contains(words)), "{decision:?}");
        }
    }
}
