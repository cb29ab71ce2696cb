//! Registering, destroying, and what the endpoint answers.

use visor::{names::AppName, testing::until};

use crate::rig::{Rig, SOON, ask, keys_below};

#[tokio::test]
async fn an_app_is_registered_once_and_errors_tell_a_way_out() {
    let rig = Rig::start().await;
    rig.init("pages").await;
    let post = |body: &'static str| ask(&rig.url, "POST", "/apps", body);
    let again = post(r#"{"name":"pages","owner":"ada","token":"token of pages"}"#).await.expect("answered");
    assert_eq!(again.0, 201, "the same registration: {again:?}");
    let taken = post(r#"{"name":"pages","owner":"bob","token":"x"}"#).await.expect("answered");
    assert_eq!(taken.0, 409);
    let said: serde_json::Value = serde_json::from_str(&taken.1).expect("it is JSON");
    assert_eq!(said["error"], "there is an app 'pages' already, owned by ada");
    assert!(!said["hint"].as_str().expect("a hint").is_empty());
    for (body, words) in [
        (r#"{"name":"Pages","owner":"ada","token":"x"}"#, "lower-case letters"),
        (r#"{"name":"../x","owner":"ada","token":"x"}"#, "lower-case letters"),
        (r#"{"name":"a","owner":"","token":"x"}"#, "owner"),
        (r#"{"name":"a","owner":"a\nb","token":"x"}"#, "owner"),
        (r#"{"name":"a"}"#, "owner"),
        ("nonsense", "can't be read"),
    ] {
        let (status, answer) = post(body).await.expect("answered");
        assert!(status == 400 && answer.contains(words), "{body}: {status} {answer}");
    }
    let gone = ask(&rig.url, "DELETE", "/apps/nothing", "").await.expect("answered");
    assert_eq!(gone.0, 404, "{gone:?}");
    let slug = ask(&rig.url, "GET", &format!("/slugs/{}", "0".repeat(64)), "").await.expect("answered");
    assert_eq!(slug.0, 404, "{slug:?}");
    let bad = ask(&rig.url, "GET", "/slugs/..%2frm.log", "").await.expect("answered");
    assert_eq!(bad.0, 400, "{bad:?}");
    let metrics = ask(&rig.url, "GET", "/metrics", "").await.expect("answered").1;
    assert!(metrics.contains("bazooka_rm_slug_requests_total{result=\"missing\"} 1"), "{metrics}");
}

#[tokio::test]
async fn a_destroyed_app_goes_with_its_repository_and_its_name_is_free_again() {
    let rig = Rig::start().await;
    let (app, folder) = rig.app("pages").await;
    folder.write("Procfile", "web: x\n").commit("one");
    folder.push().await.ok();
    let repository = rig.state().join("repos/pages.git");
    assert!(repository.is_dir());
    let (status, _) = ask(&rig.url, "DELETE", "/apps/pages", "").await.expect("answered");
    assert_eq!(status, 202);
    until("all of it has gone", SOON, || async {
        let keys = keys_below(&rig.visor, "apps/pages").await;
        let repos = keys_below(&rig.visor, "repos/").await;
        if keys.is_empty() && repos.is_empty() && !repository.exists() {
            Ok(())
        } else {
            Err(format!("{keys:?}"))
        }
    })
    .await;
    folder.commit("two");
    folder.push().await.rejected("there is no app 'pages'");

    let body = r#"{"name":"pages","owner":"bob","token":"another"}"#;
    assert_eq!(ask(&rig.url, "POST", "/apps", body).await.expect("answered").0, 201);
    let app_again: AppName = app;
    rig.until_app(&app_again, "it has a repository", |view| {
        view.repo.as_ref().is_some_and(|repo| repo.hooks && repo.token == "another")
    })
    .await;
    let refs = folder.git(&["ls-remote", "bazooka"]).await.ok().stdout;
    assert_eq!(refs, "", "nothing of the old one is in it");
    folder.push().await.ok();
}

#[tokio::test]
async fn a_repository_that_lost_its_hooks_or_settings_is_mended_at_start() {
    let mut rig = Rig::start().await;
    let (_, folder) = rig.app("pages").await;
    let repository = rig.state().join("repos/pages.git");
    rig.end(nix::sys::signal::Signal::SIGKILL).await;
    std::fs::remove_file(repository.join("hooks/pre-receive")).expect("it is there");
    std::fs::write(repository.join("config"), "[core]\n\tbare = true\n[bazooka]\n\ttoken = token of pages\n")
        .expect("written");
    rig.restart().await;
    folder.git_now(&["remote", "set-url", "bazooka", &format!("{}/pages.git", rig.url)]);
    folder.write("Procfile", "web: x\n").commit("one");
    until("the push goes through", SOON, || async {
        let pushed = folder.git(&["push", "-o", "no-wait", "bazooka", "master"]).await;
        if pushed.ok && pushed.stderr.contains("v1 released") { Ok(()) } else { Err(format!("{pushed:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_name_that_only_the_coordinator_forgot_keeps_its_repository() {
    let mut rig = Rig::start().await;
    let (app, folder) = rig.app("pages").await;
    folder.write("Procfile", "web: x\n").commit("one");
    folder.push().await.ok();
    rig.end(nix::sys::signal::Signal::SIGTERM).await;
    let lost = visor::visor::Change::new()
        .delete(&visor::keys::Key::App(app.clone()))
        .delete(&visor::keys::Key::Repo(app));
    rig.visor.commit(lost).await.expect("written");
    rig.restart().await;
    assert!(rig.state().join("repos/pages.git/refs/heads/master").exists());
}

#[tokio::test]
async fn one_persons_apps_are_bounded_and_the_answer_says_what_to_do() {
    let rig = Rig::told(&["--apps-per-person", "2"]).await;
    let register = async |name: &str, owner: &str| {
        let body = format!(r#"{{"name":"{name}","owner":"{owner}","token":"token of {name}"}}"#);
        ask(&rig.url, "POST", "/apps", &body).await.expect("answered")
    };
    for name in ["a", "b", "a"] {
        assert_eq!(register(name, "eve").await.0, 201, "{name}");
    }
    let (status, answer) = register("c", "eve").await;
    assert_eq!(status, 409);
    for words in ["eve has 2 apps, and 2 are the most", "apps-per-person", "rm.toml"] {
        assert!(answer.contains(words), "{words:?} in {answer}");
    }
    assert_eq!(register("c", "ada").await.0, 201);
}
