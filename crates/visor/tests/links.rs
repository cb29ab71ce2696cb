//! Tests of links on a real etcd: how they are added and removed with an app's env, beside rivals.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use visor::{
    keys::{self, Key},
    links::{self, Link},
    names::{AppName, EnvRef, ReleaseId, RevId},
    schema::*,
    seal::{Keyring, Os, SecretKey, Vars},
    snapshot::{AppView, Snapshot},
    testing::{Etcd, fresh_prefix, observer},
    transitions::{
        envs::{NewEnv, Opened, base_env},
        releases::{Begun, NewRelease},
    },
    visor::{Change, Committed, Refusal, Visor, VisorError},
};

const REV: &str = "16f7cbf0123456789012345678901234567890ab";

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn app(name: &str) -> AppName {
    name.parse().expect("valid")
}

fn linked(said: &[&str]) -> BTreeSet<Link> {
    said.iter().map(|said| said.parse().expect("a link")).collect()
}

/// A cluster with `front`, which links, and `api`, whose `web` it may link.
struct Cluster {
    visor: Visor,
    ring: Keyring,
}

impl Cluster {
    async fn new() -> Cluster {
        let etcd = Etcd::shared().await;
        let visor = Visor::new(observer(etcd.endpoint(), &fresh_prefix()));
        visor.set_up().await.expect("etcd answers");
        let ring = Keyring::of(SecretKey::fresh(&mut Os));
        let cluster = Cluster { visor, ring };
        let rm = Rm { seal_key: Some(cluster.ring.current()), ..Rm::at("http://127.0.0.1:1") };
        cluster.put(&Key::Rm("rm1".parse().expect("valid")), &rm).await;
        for name in ["api", "front"] {
            cluster.deploy(name).await;
        }
        cluster
    }

    async fn deploy(&self, name: &str) {
        let registered = self.visor.register_app(&app(name), "me", "token", now()).await;
        registered.expect("the name is free");
        let row = Rev {
            slug: Slug { sha256: "0".repeat(64).parse().expect("a digest"), size_bytes: 1 },
            procs: BTreeMap::from([("web".parse().expect("valid"), "run".to_owned())]),
            kind: "procfile".into(),
            by: "me".into(),
            at: now(),
            subject: String::new(),
            extra: Extra::new(),
        };
        let rev: RevId = REV.parse().expect("valid");
        self.visor.register_rev(&app(name), &rev, &row, &BTreeSet::new()).await.expect("it is registered");
        let new = NewRelease { rev: Some(rev), token: "push".into(), ..NewRelease::default() };
        let begun = self.visor.begin_release(&app(name), &new, Promoter::Converger, None, now()).await;
        assert_eq!(begun.expect("nothing else is tried"), Begun::Released(ReleaseId(1)));
    }

    async fn put<T: serde::Serialize>(&self, key: &Key, value: &T) {
        let done = self.visor.commit(Change::new().put(key, value)).await.expect("etcd answers");
        assert!(matches!(done, Committed::Done(_)));
    }

    async fn all(&self) -> Snapshot {
        self.visor.read(keys::everything()).await.expect("etcd answers")
    }

    async fn front(&self) -> AppView {
        self.all().await.apps.remove(&app("front")).expect("it is registered")
    }

    async fn vars(&self) -> Vars {
        let env = base_env(&self.front().await);
        match self.visor.open_env(&app("front"), env, &self.ring).await.expect("etcd answers") {
            Opened::Vars(vars) => vars,
            Opened::Missing => Vars::default(),
            closed => panic!("{closed:?}"),
        }
    }

    async fn links(&self) -> BTreeSet<Link> {
        let view = self.front().await;
        links::of(&view, base_env(&view)).cloned().unwrap_or_default()
    }

    /// Seals the next env of `front` as a client would now, with a change of its vars or links.
    async fn sealed(&self, change: impl FnOnce(&mut Vars, &mut BTreeSet<Link>)) -> NewEnv {
        let (mut vars, mut links) = (self.vars().await, self.links().await);
        change(&mut vars, &mut links);
        let all = self.all().await;
        let by = ("me", now());
        NewEnv::seal(&app("front"), &all.apps[&app("front")], (&vars, &links), &all, by, &mut Os)
            .expect("an rm is there")
    }

    async fn begin(&self, config: NewEnv, token: &str) -> Result<Begun, VisorError> {
        let new = NewRelease { config: Some(config), token: token.into(), ..NewRelease::default() };
        self.visor.begin_release(&app("front"), &new, Promoter::Converger, None, now()).await
    }

    async fn link(&self, said: &[&str], token: &str) -> Result<Begun, VisorError> {
        let made = self.sealed(|_, links| links.extend(linked(said))).await;
        self.begin(made, token).await
    }
}

fn set(name: &str, value: &str) -> impl FnOnce(&mut Vars, &mut BTreeSet<Link>) {
    let (name, value) = (name.to_owned(), value.to_owned());
    move |vars, _| drop(vars.as_map_mut().insert(name, value))
}

#[tokio::test]
async fn a_link_is_a_release_a_change_of_vars_keeps_it_and_it_keeps_the_vars() {
    let cluster = Cluster::new().await;
    let made = cluster.sealed(set("A", "1")).await;
    assert!(matches!(cluster.begin(made, "1").await, Ok(Begun::Released(ReleaseId(2)))));
    assert!(matches!(cluster.link(&["api:web"], "2").await, Ok(Begun::Released(ReleaseId(3)))));
    let made = cluster.sealed(set("B", "2")).await;
    assert!(matches!(cluster.begin(made, "3").await, Ok(Begun::Released(ReleaseId(4)))));
    assert_eq!(cluster.links().await, linked(&["api:web"]));
    let wanted = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "2".to_owned())]);
    assert_eq!(cluster.vars().await.as_map(), &wanted);
    let envs: Vec<usize> = cluster.front().await.envs.values().map(|row| row.links.len()).collect();
    assert_eq!(envs, [0, 1, 1], "each env has its own");
}

#[tokio::test]
async fn a_rollback_takes_a_link_back_and_another_brings_it() {
    let cluster = Cluster::new().await;
    cluster.link(&["api:web"], "1").await.expect("it is there");
    for (env, links) in [(EnvRef(0), linked(&[])), (EnvRef(1), linked(&["api:web"]))] {
        let new = NewRelease { env: Some(env), token: format!("to {env}"), ..NewRelease::default() };
        let begun = cluster.visor.begin_release(&app("front"), &new, Promoter::Converger, None, now()).await;
        assert!(matches!(begun, Ok(Begun::Released(_))), "{begun:?}");
        assert_eq!(cluster.links().await, links);
    }
}

#[tokio::test]
async fn of_a_link_and_a_var_at_once_the_later_is_made_anew_from_the_first() {
    let cluster = Cluster::new().await;
    let link = cluster.sealed(|_, links| links.extend(linked(&["api:web"]))).await;
    let var = cluster.sealed(set("A", "1")).await;
    cluster.begin(link, "link").await.expect("it comes first");
    let refused = cluster.begin(var, "var").await;
    assert!(matches!(refused, Err(VisorError::Refused(Refusal::EnvMoved(_)))), "{refused:?}");
    let again = cluster.sealed(set("A", "1")).await;
    cluster.begin(again, "var").await.expect("nobody else comes");
    assert_eq!(cluster.links().await, linked(&["api:web"]));
    assert_eq!(cluster.vars().await.as_map().len(), 1);
}

#[tokio::test]
async fn what_has_gone_meanwhile_is_not_linked_and_what_was_linked_before_stays() {
    let cluster = Cluster::new().await;
    let made = cluster.sealed(|_, links| links.extend(linked(&["api:web"]))).await;
    cluster.visor.destroy_app(&app("api")).await.expect("it is there");
    let refused = cluster.begin(made, "1").await;
    let Err(VisorError::Refused(Refusal::Unlinkable(nowhere))) = &refused else { panic!("{refused:?}") };
    assert_eq!(nowhere.why, "its app is being destroyed");
    for said in ["none:web", "front:job"] {
        let refused = cluster.link(&[said], said).await;
        assert!(matches!(refused, Err(VisorError::Refused(Refusal::Unlinkable(_)))), "{refused:?}");
    }
    assert!(cluster.front().await.envs.is_empty(), "nothing was written");

    // A service that was linked while it existed does not prevent a later env.
    cluster.deploy("later").await;
    cluster.link(&["later:web", "front:web"], "2").await.expect("they are there, its own too");
    cluster.visor.destroy_app(&app("later")).await.expect("it is there");
    let made = cluster.sealed(set("A", "1")).await;
    cluster.begin(made, "3").await.expect("it was linked before");
    assert_eq!(cluster.links().await, linked(&["front:web", "later:web"]));
}
