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
        envs::{Mending, NewEnv, Opened, Recipients, Rm as Looking, asking, handed, holders, mending},
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
        Cluster::of(SCHEMA_VERSION).await
    }

    /// A cluster of a version of the schema, in which older parts may still write.
    async fn of(version: u32) -> Cluster {
        let store = ModelStore::new();
        let visor = Visor::new(store.shared());
        visor.set_up().await.expect("it is in memory");
        let cluster = Cluster { store, visor };
        cluster.migrated(version).await;
        cluster
            .visor
            .register_app(&app(), "me", "token", Timestamp::UNIX_EPOCH)
            .await
            .expect("it is in memory");
        cluster
    }

    async fn migrated(&self, version: u32) {
        self.migrating(version, version).await;
    }

    /// A migration has shut out writers before `min_writer`, and waits until the rows have their new form.
    async fn migrating(&self, version: u32, min_writer: u32) {
        let schema = Schema { version, min_reader: version, min_writer, ..Schema::default() };
        self.put(&Key::Schema, &schema).await;
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
        self.host_of(name, "a", ring).await;
    }

    async fn host_of(&self, name: &str, zone: &str, ring: Option<&Keyring>) {
        let row = Host {
            schema: None,
            address: "127.0.0.1".parse().expect("valid"),
            url: String::new(),
            zone: zone.parse().expect("valid"),
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
        self.visor.read(keys::everything_and_private()).await.expect("it is in memory")
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
        self.mending_at(ring, Timestamp::UNIX_EPOCH).await
    }

    async fn mending_at(&self, ring: &Keyring, now: Timestamp) -> Mending {
        let all = self.all().await;
        let rm = Looking { snapshot: &all, to: &Recipients::of(&all), ring, now };
        mending(rm, &app(), &all.apps[&app()], &mut Os)
    }

    /// Mends once, and checks that nothing is left to mend.
    async fn mend(&self, ring: &Keyring) -> usize {
        let Mending { changes, closed, .. } = self.mending(ring).await;
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
    async fn host_opens(&self, name: &str, ring: &Keyring) -> Option<Vars> {
        let all = self.all().await;
        let handed = handed(&all, &all.apps[&app()], &host(name), E1)?;
        ring.open(&app(), E1, &handed).ok()
    }

    /// Asks for a wrap for a host, as the converger does.
    async fn ask(&self, by: &str, name: &str, ring: &Keyring) {
        let asked = asking((&host(by), &host(name)), &app(), E1, ring.current(), Timestamp::UNIX_EPOCH);
        assert!(matches!(self.visor.commit(asked).await, Ok(Committed::Done(_))));
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
    assert_eq!(cluster.host_opens("host1", &one).await, Some(vars("secret")));
    assert_eq!(cluster.host_opens("host1", &other).await, None);
    let page = cluster.visor.store().range(visor::store::Keys::Prefix(String::new()), None).await;
    for entry in page.expect("it is in memory").entries {
        let text = String::from_utf8_lossy(&entry.value).into_owned();
        assert!(!text.contains("secret") && !text.contains("KEY"), "{} {text}", entry.key);
        assert!(!entry.key.contains("wraps"), "{} can be read by every reader", entry.key);
    }
}

#[tokio::test]
async fn a_new_env_is_wrapped_for_three_hosts_and_not_for_every_one() {
    let cluster = Cluster::new().await;
    cluster.rm("rm1", &ring()).await;
    for n in 0..20 {
        let zone = ["a", "b", "c"][n % 3];
        cluster.host_of(&format!("host{n}"), zone, Some(&ring())).await;
    }
    cluster.set("secret").await;
    let view = cluster.view().await;
    assert_eq!(view.wraps[&E1].hosts.len(), holders::MORE, "nothing runs yet");
}

#[tokio::test]
async fn who_comes_later_gets_a_wrap_from_an_rm_and_one_that_can_open_nothing_gives_none() {
    let cluster = Cluster::new().await;
    let (rm, second, late) = (ring(), ring(), ring());
    cluster.rm("rm1", &rm).await;
    cluster.set("secret").await;
    cluster.host("host9", Some(&late)).await;
    cluster.rm("rm2", &second).await;
    assert_eq!(
        cluster.mending(&rm).await.changes.len(),
        1,
        "a host gets no wrap that the converger has not asked for"
    );
    cluster.ask("host9", "host9", &late).await;
    assert_eq!(cluster.host_opens("host9", &late).await, None);
    let closed = cluster.mending(&second).await;
    assert_eq!((closed.changes.len(), closed.closed), (0, vec![(E1, OpenError::NotForUs)]));
    assert_eq!(cluster.mend(&rm).await, 2);
    assert_eq!(cluster.host_opens("host9", &late).await, Some(vars("secret")));
    assert_eq!(cluster.opens(&second).await, Opened::Vars(vars("secret")));
}

#[tokio::test]
async fn an_rm_wraps_for_no_key_that_the_host_does_not_call_its_own() {
    let cluster = Cluster::new().await;
    let rm = ring();
    cluster.rm("rm1", &rm).await;
    cluster.set("secret").await;
    cluster.host("host9", Some(&ring())).await;
    cluster.ask("host9", "host9", &ring()).await;
    cluster.ask("host9", "nowhere", &ring()).await;
    assert!(cluster.mending(&rm).await.changes.is_empty());
}

#[tokio::test]
async fn of_two_rms_that_add_a_wrap_at_once_one_gets_through() {
    let cluster = Cluster::new().await;
    let (rm, late) = (ring(), ring());
    cluster.rm("rm1", &rm).await;
    cluster.set("secret").await;
    cluster.host("host1", Some(&late)).await;
    cluster.ask("host1", "host1", &late).await;
    let (first, second) = (cluster.mending(&rm).await, cluster.mending(&rm).await);
    let mut done = Vec::new();
    for (_, change) in first.changes.into_iter().chain(second.changes) {
        done.push(cluster.visor.commit(change).await.expect("it is in memory"));
    }
    assert!(matches!(done[..], [Committed::Done(_), Committed::Conflict]), "{done:?}");
}

#[tokio::test]
async fn the_wraps_of_hosts_end_once_they_have_been_handed_out() {
    let cluster = Cluster::new().await;
    let (rm, one) = (ring(), ring());
    cluster.rm("rm1", &rm).await;
    cluster.host("host1", Some(&one)).await;
    cluster.set("secret").await;
    let at = |minutes| Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_mins(minutes);
    let early = cluster.mending_at(&rm, at(9)).await;
    assert_eq!((early.changes.len(), early.look_again), (0, Some(at(10))));
    let late = cluster.mending_at(&rm, at(10)).await;
    assert_eq!((late.changes.len(), late.look_again), (1, None));
    for (_, change) in late.changes {
        cluster.visor.commit(change).await.expect("it is in memory");
    }
    assert_eq!(cluster.host_opens("host1", &one).await, None);
    assert_eq!(cluster.opens(&rm).await, Opened::Vars(vars("secret")));
}

#[tokio::test]
async fn a_later_app_of_the_same_name_opens_nothing_of_the_former_one() {
    let cluster = Cluster::new().await;
    let (rm, one) = (ring(), ring());
    cluster.rm("rm1", &rm).await;
    cluster.host("host1", Some(&one)).await;
    cluster.set("secret").await;
    let kept = cluster.view().await;
    assert_eq!(cluster.host_opens("host1", &one).await, Some(vars("secret")));
    let mut gone = Change::new().delete(&Key::App(app()));
    for key in [Key::Env(app(), E1), Key::Wraps(app(), E1)] {
        gone = gone.delete(&key);
    }
    cluster.visor.commit(gone).await.expect("it is in memory");
    // Somebody else takes the name, and writes the rows that everybody could read.
    cluster
        .visor
        .register_app(&app(), "eve", "another", Timestamp::UNIX_EPOCH)
        .await
        .expect("the name is free");
    cluster.put(&Key::Env(app(), E1), &kept.envs[&E1].value).await;
    cluster.put(&Key::Wraps(app(), E1), &kept.wraps[&E1].value).await;
    assert_eq!(cluster.opens(&rm).await, Opened::Closed(OpenError::Broken));
    assert_eq!(cluster.host_opens("host1", &one).await, None);
}

#[tokio::test]
async fn what_is_bound_to_no_registration_is_bound_by_an_rm_and_opens_no_more_after_the_migration() {
    let cluster = Cluster::of(3).await;
    let (rm, one) = (ring(), ring());
    cluster.rm("rm1", &rm).await;
    cluster.host("host1", Some(&one)).await;
    cluster.set("secret").await;
    let before = cluster.view().await;
    assert!(
        before.wraps.is_empty() && before.earlier_wraps[&E1].hosts.len() == 1,
        "the host reads nothing else"
    );
    assert_eq!(cluster.host_opens("host1", &one).await, Some(vars("secret")));
    assert_eq!(cluster.mend(&rm).await, 0, "a part may be of version 3");

    cluster.migrating(3, 4).await;
    assert_eq!(cluster.mend(&rm).await, 1);
    let after = cluster.view().await;
    assert!(after.earlier_wraps.is_empty() && after.wraps.contains_key(&E1));
    assert_eq!(cluster.opens(&rm).await, Opened::Vars(vars("secret")));
    cluster.ask("host1", "host1", &one).await;
    assert_eq!(cluster.mend(&rm).await, 1);
    assert_eq!(cluster.host_opens("host1", &one).await, Some(vars("secret")));

    // A row of the earlier form that somebody has kept, written again.
    cluster.put(&Key::Env(app(), E1), &before.envs[&E1].value).await;
    cluster.visor.commit(Change::new().delete(&Key::Wraps(app(), E1))).await.expect("it is in memory");
    cluster.put(&Key::EarlierWraps(app(), E1), &before.earlier_wraps[&E1].value).await;
    assert_eq!(
        cluster.opens(&rm).await,
        Opened::Vars(vars("secret")),
        "it may be what a part of version 3 wrote"
    );
    cluster.migrated(4).await;
    assert_eq!(cluster.opens(&rm).await, Opened::Closed(OpenError::Earlier));
    assert_eq!(cluster.host_opens("host1", &one).await, None);
    assert_eq!(cluster.mending(&rm).await.closed, [(E1, OpenError::Earlier)]);
}

#[tokio::test]
async fn wraps_of_an_env_that_is_gone_are_deleted_by_an_rm_because_nobody_else_sees_them() {
    let cluster = Cluster::new().await;
    let rm = ring();
    cluster.rm("rm1", &rm).await;
    cluster.set("secret").await;
    cluster.visor.commit(Change::new().delete(&Key::Env(app(), E1))).await.expect("it is in memory");
    assert_eq!(cluster.mend(&rm).await, 1);
    assert!(cluster.view().await.wraps.is_empty());
}

#[tokio::test]
async fn two_more_hosts_hold_an_env_in_other_zones_and_those_that_have_it_stay() {
    let cluster = Cluster::new().await;
    for (name, zone) in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b"), ("c1", "c")] {
        cluster.host_of(name, zone, Some(&ring())).await;
    }
    cluster.host_of("keyless", "d", None).await;
    let mut all = cluster.all().await;
    let zones = |names: Vec<&HostName>| -> BTreeSet<char> {
        names.iter().filter_map(|name| name.as_str().chars().next()).collect()
    };
    let (one, nobody) = (host("a1"), |_: &HostName| false);
    let run = BTreeSet::from([&one]);
    assert_eq!(zones(holders::more(&all, (&app(), E1), &run, nobody)), BTreeSet::from(['b', 'c']));
    for held in ["b1", "b2"] {
        let chosen = holders::more(&all, (&app(), E1), &run, |name| name.as_str() == held);
        assert!(chosen.contains(&&host(held)), "{held} has it");
        assert_eq!(zones(chosen), BTreeSet::from(['b', 'c']));
    }
    let both = holders::more(&all, (&app(), E1), &run, |name| name.as_str().starts_with('b'));
    assert_eq!(zones(both), BTreeSet::from(['b', 'c']), "another zone is worth a move");
    for name in ["b1", "b2", "c1"] {
        all.hosts.remove(&host(name));
    }
    assert_eq!(holders::more(&all, (&app(), E1), &run, nobody), [&host("a2")], "no other zone is left");
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
async fn no_env_is_made_that_was_sealed_for_an_earlier_app_of_the_name() {
    let cluster = Cluster::new().await;
    cluster.rm("rm1", &ring()).await;
    let made = cluster.sealed("secret").await.expect("an rm is there");
    cluster.visor.commit(Change::new().delete(&Key::App(app()))).await.expect("it is in memory");
    cluster
        .visor
        .register_app(&app(), "eve", "another", Timestamp::UNIX_EPOCH)
        .await
        .expect("the name is free");
    let refused = cluster.begin(made, "t").await;
    assert!(matches!(refused, Err(VisorError::Refused(Refusal::EnvMoved(_)))), "{refused:?}");
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
    let cluster = Cluster::of(1).await;
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
    assert_eq!(cluster.host_opens("host1", &one).await, Some(vars("secret")));
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
    let (app, env) = (app(), E1);
    let of = visor::seal::EnvOf { app: &app, registration: Some("token"), env };
    let sealed = Some(key.seal(of, &vars("secret"), &mut Os));
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
