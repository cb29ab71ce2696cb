//! `bazooka init`, with an rm that speaks its HTTP and sets repositories up step by step.

use axum::{Json, Router, http::StatusCode, routing::post};
use jiff::Timestamp;
use serde_json::{Value, json};
use visor::{
    names::AppName,
    schema::{Ask, Repo, Rm},
    visor::Visor,
};

use crate::rig::{Rig, app};

/// Plays rm: registers what it is asked to, and sets the repository up in the background.
async fn rm(visor: &Visor) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it has an address"));
    let lease = visor.store().grant(std::time::Duration::from_secs(300)).await.expect("it is granted");
    let row = Rm::at(url);
    visor
        .publish_rm(&"rm1".parse().expect("valid"), &row, &Ask::new("word"), lease)
        .await
        .expect("the coordinator answers");
    let visor = visor.clone();
    let register = move |Json(asked): Json<Value>| {
        let visor = visor.clone();
        async move {
            let word = |name: &str| asked[name].as_str().unwrap_or_default().to_owned();
            let name: AppName = word("name").parse().expect("checked by the client");
            let token = word("token");
            match visor.register_app(&name, &word("owner"), &token, Timestamp::now()).await {
                Ok(()) => {
                    tokio::spawn(async move { set_up(&visor, &name, &token).await });
                    (StatusCode::CREATED, Json(json!({})))
                }
                Err(error) => {
                    (StatusCode::CONFLICT, Json(json!({"error": error.to_string(), "hint": "another"})))
                }
            }
        }
    };
    let routes = Router::new().route("/apps", post(register));
    tokio::spawn(async move { axum::serve(listener, routes).await });
}

async fn set_up(visor: &Visor, name: &AppName, token: &str) {
    let url = format!("http://rm.example.org/{name}.git");
    let mut repo = Repo { url, token: token.to_owned(), ..Repo::default() };
    for step in 0..3 {
        match step {
            0 => repo.created = true,
            1 => repo.configured = true,
            _ => repo.hooks = true,
        }
        visor.report_repo(name, &repo).await.expect("the app is there");
    }
}

const TRANSCRIPT: &str = "app 'goto-rocket' registered\n\
    [bazooka-rm] remote repository created\n\
    [bazooka-rm] git config updated\n\
    [bazooka-rm] hooks setup\n\
    remote entry created\n";

#[tokio::test]
async fn init_is_the_originals_word_for_word_and_may_be_run_again() {
    let rig = Rig::new().await;
    rm(&rig.visor).await;
    rig.git(&["init", "-q"]).await.exits(0);
    assert_eq!(rig.bazooka(&["init", "goto-rocket"]).await.ok().stdout, TRANSCRIPT);
    let again = rig.bazooka(&["init", "goto-rocket"]).await.ok().stdout;
    assert_eq!(again, "app 'goto-rocket' registered already\nremote entry there already\n");
    let url = rig.git(&["remote", "get-url", "bazooka"]).await.exits(0).stdout;
    assert_eq!(url, "http://rm.example.org/goto-rocket.git\n");
    rig.git(&["remote", "set-url", "bazooka", "http://old.example.org/goto-rocket.git"]).await.exits(0);
    let moved = rig.bazooka(&["-a", "goto-rocket", "init"]).await.ok().stdout;
    assert_eq!(moved, "app 'goto-rocket' registered already\nremote entry updated\n");
    rig.git(&["remote", "remove", "bazooka"]).await.exits(0);
    let anew = rig.bazooka(&["init", "goto-rocket"]).await.ok().stdout;
    assert_eq!(anew, "app 'goto-rocket' registered already\nremote entry created\n");
    let unnamed = rig.bazooka(&["init"]).await.ok().stdout;
    assert_eq!(unnamed, again, "the folder has another name, but the remote leads to this app");
    assert_eq!(rig.bazooka(&["procs"]).await.ok().stdout.lines().count(), 1, "the remote names the app");
}

#[tokio::test]
async fn the_folders_name_is_the_apps() {
    let rig = Rig::new().await;
    rm(&rig.visor).await;
    let folder = rig.home().join("Goto Rocket");
    std::fs::create_dir_all(folder.join("deep/down")).expect("the folder can be made");
    rig.git(&["init", "-q", "Goto Rocket"]).await.exits(0);
    let mut command = rig.command(env!("CARGO_BIN_EXE_bazooka"), &["init"]);
    let child = command.current_dir(folder.join("deep/down")).spawn().expect("it can be started");
    assert_eq!(crate::rig::end(child).await.ok().stdout, TRANSCRIPT);
}

#[tokio::test]
async fn what_cannot_be_is_told_before_anything_is_made() {
    let rig = Rig::new().await;
    let ran = rig.bazooka(&["init", "goto-rocket"]).await.exits(2);
    assert!(ran.stderr.contains("git init"), "no repository: {ran:?}");
    rig.git(&["init", "-q"]).await.exits(0);
    let ran = rig.bazooka(&["init", "goto-rocket"]).await.exits(5);
    assert!(ran.stderr.contains("bazooka-rm"), "no rm: {ran:?}");
    rm(&rig.visor).await;
    rig.visor.register_app(&app("taken"), "ada", "t", Timestamp::now()).await.expect("it is free");
    let ran = rig.bazooka(&["init", "taken"]).await.exits(4);
    assert!(ran.stderr.contains("owned by ada"), "{ran:?}");
    rig.git(&["remote", "add", "bazooka", "http://rm.example.org/other.git"]).await.exits(0);
    let ran = rig.bazooka(&["init", "goto-rocket"]).await.exits(4);
    assert!(ran.stderr.contains("other.git"), "{ran:?}");
    let ran = rig.bazooka(&["-a", "a", "init", "b"]).await.exits(2);
    assert!(ran.stderr.contains("twice"), "{ran:?}");
    let all = rig.visor.read(vec![visor::keys::apps()]).await.expect("the coordinator answers");
    assert_eq!(all.apps.keys().map(AppName::as_str).collect::<Vec<_>>(), ["taken"]);
}
