//! Tests of config vars: who can open them, as hosts and rms come, go and change their keys.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use visor::{
    keys::{self, Key},
    names::{AppName, EnvRef, HostName},
    schema::*,
    seal::{Keyring, OpenError, Os, SecretKey, Vars},
    snapshot::{AppView, Snapshot},
    store::model::{Fate, ModelStore},
    transitions::{
        envs::{Mending, NewEnv, Opened, Recipients, handed, mending},
        releases::{Begun, NewRelease},
    },
    visor::{Change, Committed, Refusal, Visor, VisorError},
};

const E1: EnvRef = EnvRef(1);

fn app() -> AppName {
    "rocket".parse().expect("valid")
}

fn host(name: &str) -> HostName {
    name.parse().expect("valid")
}

fn ring() -> Keyring {
    Keyring::of(SecretKey::fresh(&mut Os))
}

fn vars(value: &str) -> Vars {
    BTreeMap::from([("KEY".to_owned(), value.to_owned())]).into()
}

struct Cluster {
    store: ModelStore,
    visor: Visor,
}

impl Cluster {
    async fn new() -> Cluster {
        let store = ModelStore::new();
        let visor = Visor::new(store.shared());
        visor.set_up().await.expect("it is in memory");
        visor.register_app(&app(), "me", "token", Timestamp::UNIX_EPOCH).await.expect("it is in memory");
        Cluster { store, visor }
    }

    async fn put<T: serde::Serialize>(&self, key: &Key, value: &T) {
        let done = self.visor.commit(Change::new().put(key, value)).await.expect("it is in memory");
        assert!(matches!(done, Committed::Done(_)));
    }

    async fn rm(&self, name: &str, ring: &Keyring) {
        let retired_seal_keys = ring.retired();
        let row = Rm { seal_key: Some(ring.current()), retired_seal_keys, ..Rm::at("http://127.0.0.1:1") };
        self.put(&Key::Rm(host(name)), &row).await;
    }

    async fn host(&self, name: &str, ring: Option<&Keyring>) {
        let row = Host {
            schema: None,
            address: "127.0.0.1".parse().expect("valid"),
            url: String::new(),
            zone: "a".parse().expect("valid"),
            version: String::new(),
            capacity: Capacity { memory_bytes: 1, instances: 1, extra: Extra::new() },
            isolation: String::new(),
            boot_id: String::new(),
            seal_key: ring.map(Keyring::current),
            services: None,
            since: Timestamp::UNIX_EPOCH,
            token: String::new(),
            extra: Extra::new(),
        };
        self.put(&Key::Host(host(name)), &row).await;
    }

    async fn all(&self) -> Snapshot {
        self.visor.read(keys::everything()).await.expect("it is in memory")
    }

    async fn view(&self) -> AppView {
        self.all().await.apps.remove(&app()).expect("it is registered")
    }

    /// Seals an env as a client would now.
    async fn sealed(&self, value: &str) -> Option<NewEnv> {
        let all = self.all().await;
        let now = ("me", Timestamp::UNIX_EPOCH);
        NewEnv::seal(&app(), &all.apps[&app()], (&vars(value), &BTreeSet::new()), &all, now, &mut Os)
    }

    async fn begin(&self, config: NewEnv, token: &str) -> Result<Begun, VisorError> {
        let new = NewRelease { config: Some(config), token: token.into(), ..NewRelease::default() };
        self.visor.begin_release(&app(), &new, Promoter::Converger, None, Timestamp::UNIX_EPOCH).await
    }

    async fn set(&self, value: &str) -> EnvRef {
        let made = self.sealed(value).await.expect("an rm is there");
        match self.begin(made, value).await {
            Ok(Begun::EnvOnly(env)) => env,
            other => panic!("{other:?}"),
        }
    }

    async fn mending(&self, ring: &Keyring) -> Mending {
        let all = self.all().await;
        mending(&app(), &all.apps[&app()], &Recipients::of(&all), ring, &mut Os)
    }

    /// Mends once, and checks that nothing is left to mend.
    async fn mend(&self, ring: &Keyring) -> usize {
        let Mending { changes, closed } = self.mending(ring).await;
        assert_eq!(closed, []);
        let count = changes.len();
        for (_, change) in changes {
            assert!(matches!(self.visor.commit(change).await, Ok(Committed::Done(_))));
        }
        let again = self.mending(ring).await;
        assert!(again.changes.is_empty(), "{again:?}");
        count
    }

    async fn opens(&self, ring: &Keyring) -> Opened {
        self.visor.open_env(&app(), E1, ring).await.expect("it is in memory")
    }

    /// Opens it as a host could, if the converger had handed it over.
    async fn host_opens(&self, ring: &Keyring) -> Option<Vars> {
        let view = self.view().await;
        let handed = handed(&view.envs[&E1], view.wraps.get(&E1)?, &ring.current())?;
        ring.open(&app(), E1, &handed).ok()
    }
}

#[tokio::test]
async fn an_env_opens_for_the_hosts_and_rms_that_were_there_and_for_nobody_else() {
    let cluster = Cluster::new().await;
    let (rm, one, other) = (ring(), ring(), ring());
    assert_eq!(cluster.sealed("x").await, None, "there is no rm that could ever show it again");
    cluster.rm("rm1", &rm).await;
    cluster.host("host1", Some(&one)).await;
    assert_eq!(cluster.set("secret").await, E1);
    assert_eq!(cluster.opens(&rm).await, Opened::Vars(vars("secret")));
    assert_eq!(cluster.opens(&other).await, Opened::Closed(OpenError::NotForUs));
    assert_eq!(cluster.opens(&one).await, Opened::Closed(OpenError::NotForUs), "a host's key is no rm's");
    assert_eq!(cluster.host_opens(&one).await, Some(vars("secret")));
    assert_eq!(cluster.host_opens(&other).await, None);
    let page = cluster.visor.store().range(visor::store::Keys::Prefix(String::new()), None).await;
    for entry in page.expect("it is in memory").entries {
        let text = String::from_utf8_lossy(&entry.value).into_owned();
        assert!(!text.contains("secret") && !text.contains("KEY"), "{} {text}", entry.key);
    }
}

#[tokio::test]
async fn who_comes_later_gets_a_wrap_from_an_rm_and_one_that_can_open_nothing_gives_none() {
    let cluster = Cluster::new().await;
    let (rm, second, late) = (ring(), ring(), ring());
    cluster.rm("rm1", &rm).await;
    cluster.set("secret").await;
    cluster.host("host9", Some(&late)).await;
    cluster.rm("rm2", &second).await;
    assert_eq!(cluster.host_opens(&late).await, None);
    let closed = cluster.mending(&second).await;
    assert_eq!((closed.changes.len(), closed.closed), (0, vec![(E1, OpenError::NotForUs)]));
    assert_eq!(cluster.mend(&rm).await, 1);
    assert_eq!(cluster.host_opens(&late).await, Some(vars("secret")));
    assert_eq!(cluster.opens(&second).await, Opened::Vars(vars("secret")));
}

#[tokio::test]
async fn of_two_rms_that_add_a_wrap_at_once_one_gets_through() {
    let cluster = Cluster::new().await;
    let rm = ring();
    cluster.rm("rm1", &rm).await;
    cluster.set("secret").await;
    cluster.host("host1", Some(&ring())).await;
    let (first, second) = (cluster.mending(&rm).await, cluster.mending(&rm).await);
    let mut done = Vec::new();
    for (_, change) in first.changes.into_iter().chain(second.changes) {
        done.push(cluster.visor.commit(change).await.expect("it is in memory"));
    }
    assert!(matches!(done[..], [Committed::Done(_), Committed::Conflict]), "{done:?}");
}

#[tokio::test]
async fn a_replaced_key_of_an_rm_goes_once_its_new_one_has_all_wraps() {
    let cluster = Cluster::new().await;
    let before = ring();
    cluster.rm("rm1", &before).await;
    cluster.set("secret").await;
    let after = before.rotated(SecretKey::fresh(&mut Os));
    cluster.rm("rm1", &after).await;
    assert_eq!(cluster.opens(&after).await, Opened::Vars(vars("secret")), "by the key before");
    assert_eq!(cluster.mend(&after).await, 1);
    let alone = after.without_retired();
    assert_eq!(cluster.opens(&alone).await, Opened::Vars(vars("secret")));
    assert_eq!(cluster.opens(&before).await, Opened::Closed(OpenError::NotForUs));
}

#[tokio::test]
async fn no_env_is_made_for_a_key_that_was_replaced_meanwhile() {
    let cluster = Cluster::new().await;
    let before = ring();
    cluster.rm("rm1", &before).await;
    let made = cluster.sealed("secret").await.expect("an rm is there");
    cluster.rm("rm1", &before.rotated(SecretKey::fresh(&mut Os))).await;
    let refused = cluster.begin(made, "t").await;
    assert!(matches!(refused, Err(VisorError::Refused(Refusal::EnvMoved(_)))), "{refused:?}");
    assert!(cluster.view().await.envs.is_empty());
}

#[tokio::test]
async fn of_two_changes_at_once_the_later_is_made_anew_and_a_lost_replys_own_is_known() {
    let cluster = Cluster::new().await;
    cluster.rm("rm1", &ring()).await;
    let (one, other) = (cluster.sealed("1").await, cluster.sealed("2").await);
    cluster.store.faults().next_writes(Some(Fate::LoseReply));
    let begun = cluster.begin(one.expect("an rm is there"), "one").await;
    assert!(matches!(begun, Ok(Begun::EnvOnly(E1))), "{begun:?}");
    let refused = cluster.begin(other.expect("an rm is there"), "other").await;
    assert!(matches!(refused, Err(VisorError::Refused(Refusal::EnvMoved(_)))), "{refused:?}");
    assert_eq!(cluster.view().await.envs.len(), 1);
    assert_eq!(cluster.set("3").await, EnvRef(2));
}

#[tokio::test]
async fn what_version_1_wrote_is_sealed_once_all_can_open_it_and_no_sooner() {
    let cluster = Cluster::new().await;
    let (rm, one) = (ring(), ring());
    let row = r#"{"vars":{"KEY":"secret"},"by":"me","at":"2026-01-01T00:00:00Z","mood":"red"}"#;
    let row: serde_json::Value = serde_json::from_str(row).expect("JSON");
    cluster.put(&Key::Env(app(), E1), &row).await;
    cluster.rm("rm1", &rm).await;
    cluster.host("host1", Some(&one)).await;
    cluster.host("host2", None).await;
    assert_eq!(cluster.mend(&rm).await, 0, "host2 could not run the app any more");
    assert_eq!(cluster.opens(&rm).await, Opened::Vars(vars("secret")));
    cluster.host("host2", Some(&ring())).await;
    assert_eq!(cluster.mend(&rm).await, 1);
    assert_eq!(cluster.opens(&rm).await, Opened::Vars(vars("secret")));
    assert_eq!(cluster.host_opens(&one).await, Some(vars("secret")));
    let view = cluster.view().await;
    let after = &view.envs[&E1];
    assert!(after.vars.is_none() && after.extra.contains_key("mood") && after.by == "me");
}

#[test]
fn version_1_takes_a_sealed_env_neither_for_an_empty_one_nor_for_an_absent_one() {
    /// An env's row as version 1 had it.
    #[derive(Debug, serde::Deserialize)]
    #[allow(dead_code, reason = "what matters is whether it can be read")]
    struct Before {
        vars: BTreeMap<String, String>,
    }
    let key = visor::seal::DataKey::fresh(&mut Os);
    let sealed = Some(key.seal(&app(), E1, &vars("secret"), &mut Os));
    let at = Timestamp::UNIX_EPOCH;
    let row = Env { sealed, vars: None, links: BTreeSet::new(), by: "me".into(), at, extra: Extra::new() };
    let text = serde_json::to_string(&row).expect("JSON");
    assert!(serde_json::from_str::<Before>(&text).is_err());
}

#[test]
fn a_row_for_a_thousand_hosts_is_far_below_what_etcd_takes() {
    let key = visor::seal::DataKey::fresh(&mut Os);
    let hosts: Vec<_> = (0..1_000).map(|_| SecretKey::fresh(&mut Os).public()).collect();
    let row = visor::transitions::envs::wraps(&key, &hosts[..3], &hosts, &mut Os);
    let bytes = serde_json::to_vec(&row).expect("JSON").len();
    assert!((150_000..170_000).contains(&bytes), "{bytes}");
}
