//! Links: what is said, what is made of it, and what is refused.

use visor::keys::Key;

use crate::{
    player::Player,
    rig::{REV, Rig, app},
};

/// A command about the app `front`.
fn args<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [&["-a", "front"], words].concat()
}

/// `front`, and `api` with a web and a job.
async fn cluster() -> Rig {
    let rig = Rig::with_app("front", &["web"]).await;
    rig.register("api").await;
    rig.push("api", REV, &["web", "job"]).await;
    rig.rm().await;
    rig
}

#[tokio::test]
async fn links_are_tried_released_listed_and_taken_away() {
    let rig = cluster().await;
    let _player = Player::start(&rig.visor).await;
    let none = rig.bazooka(&args(&["link"])).await.exits(0);
    assert!(none.stderr.contains("hint: bazooka link add APP:PROC"), "{none:?}");
    rig.bazooka(&args(&["scale", "-n", "2", "web"])).await.ok();
    let added = rig.bazooka(&args(&["link", "add", "api:web", "front:web"])).await.ok();
    assert_eq!(added.stdout, "v2 released (e1)\nweb v1 -> v2 ..\n");
    let list = rig.bazooka(&args(&["link", "list"])).await.ok().stdout;
    let wanted = "LINK\tPORT\tVARIABLE\napi:web\t8503\tBAZOOKA_SERVICE_API_WEB\n\
                  front:web\t8501\tBAZOOKA_SERVICE_FRONT_WEB\n";
    assert_eq!(list, wanted);
    let json = rig.bazooka(&args(&["link", "--json"])).await.ok().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
    let first = serde_json::json!({"link": "api:web", "port": 8503, "variable": "BAZOOKA_SERVICE_API_WEB"});
    assert_eq!(json[0], first);

    // Vars and links leave each other alone.
    rig.bazooka(&args(&["config", "set", "A=1"])).await.ok();
    assert_eq!(rig.bazooka(&args(&["link"])).await.ok().stdout, wanted);
    rig.bazooka(&args(&["link", "remove", "front:web"])).await.ok();
    assert_eq!(rig.bazooka(&args(&["config"])).await.ok().stdout, "NAME\tVALUE\nA\t1\n");
    let back = rig.bazooka(&args(&["rollback", "v1"])).await.ok();
    assert!(back.stdout.starts_with("v5 released (e0)\n"), "{back:?}");
    rig.bazooka(&args(&["link"])).await.exits(0);
    let releases = rig.bazooka(&args(&["releases"])).await.ok().stdout;
    for reason in ["link add api:web front:web", "link remove front:web"] {
        assert!(releases.contains(reason), "{releases}");
    }
}

#[tokio::test]
async fn what_is_so_already_is_told_and_makes_no_release() {
    let rig = cluster().await;
    rig.bazooka(&args(&["link", "add", "api:web"])).await.ok();
    let again = rig.bazooka(&args(&["link", "add", "api:web"])).await.exits(0);
    assert_eq!(again.stderr, "app 'front' links api:web already\n");
    assert_eq!(again.stdout, "nothing changes: v2 has these already\n");
    let none = rig.bazooka(&args(&["link", "remove", "api:job"])).await.exits(0);
    assert_eq!(none.stderr, "app 'front' has no link api:job\n");
    assert_eq!(none.stdout, "nothing changes: v2 has these already\n");
    // What is linked already may lead nowhere by now, and is in nobody's way.
    rig.visor.destroy_app(&app("api")).await.expect("it is there");
    rig.bazooka(&args(&["link", "add", "api:web"])).await.exits(0);
    let list = rig.bazooka(&args(&["link"])).await.ok().stdout;
    assert!(list.contains("api:web\tgone\t"), "{list}");
    rig.bazooka(&args(&["link", "add", "api:web", "front:web"])).await.exits(0);
}

#[tokio::test]
async fn a_link_that_can_not_be_is_refused_with_what_may_be_meant() {
    let rig = cluster().await;
    for (name, procs) in [("a-b", &["c"][..]), ("a", &["b-c"])] {
        rig.register(name).await;
        rig.push(name, REV, procs).await;
    }
    for (links, code, said) in [
        (&["api"][..], 2, "an app and its proc with a colon between"),
        (&["api:we.b"], 2, "proc name"),
        (&["api/web"], 2, "colon"),
        (&[], 2, "APP:PROC"),
        (&["apo:web"], 3, "did you mean 'api'?"),
        (&["api:wbe"], 3, "did you mean 'web'?"),
        (&["front:job"], 3, "app 'front' has no proc 'job'"),
        (&["api:web", "nobody:web"], 3, "there is no app 'nobody'"),
        (&["a-b:c", "a:b-c"], 4, "would both set BAZOOKA_SERVICE_A_B_C"),
    ] {
        let ran = rig.bazooka(&args(&[&["link", "add"], links].concat())).await.exits(code);
        assert!(ran.stderr.contains(said), "{links:?}: {ran:?}");
    }
    rig.bazooka(&args(&["link", "add", "api:web", "--json"])).await.exits(2);
    let unknown = rig.bazooka(&["-a", "frnt", "link", "add", "api:web"]).await.exits(3);
    assert!(unknown.stderr.contains("did you mean 'front'?"), "{unknown:?}");
    rig.visor.destroy_app(&app("api")).await.expect("it is there");
    let going = rig.bazooka(&args(&["link", "add", "api:web"])).await.exits(3);
    assert!(going.stderr.contains("api:web can't be linked: its app is being destroyed"), "{going:?}");
    // What can't be read isn't absent.
    let key = Key::Proc(app("a"), "b-c".parse().expect("valid"));
    rig.write(&key, &"torn").await;
    let torn = rig.bazooka(&args(&["link", "add", "a:b-c"])).await.exits(3);
    assert!(torn.stderr.contains("its row can't be read"), "{torn:?}");
    assert!(
        rig.visor
            .get::<visor::schema::Env>(&Key::Env(app("front"), visor::names::EnvRef(1)))
            .await
            .expect("etcd answers")
            .is_none()
    );
}

#[tokio::test]
async fn links_added_at_once_are_all_there_in_the_end() {
    let rig = Rig::with_app("front", &["web"]).await;
    rig.rm().await;
    let names = ["one", "two", "three"];
    for name in names {
        rig.register(name).await;
        rig.push(name, REV, &["web"]).await;
    }
    let links = names.map(|name| format!("{name}:web"));
    let adding = links.iter().map(|link| rig.start(&args(&["link", "add", link.as_str()])));
    let adding: Vec<_> = adding.collect();
    for child in adding {
        crate::rig::end(child).await.ok();
    }
    let list = rig.bazooka(&args(&["link"])).await.ok().stdout;
    assert_eq!(list.lines().count(), 4, "{list}");
}
