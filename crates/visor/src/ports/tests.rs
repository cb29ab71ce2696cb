//! Tests of ports: of rows alone, and of procs' rows where earlier releases left rows out.

use serde_json::json;

use super::*;
use crate::transitions::ports::change;

const AT: &str = "2026-11-30T12:00:00Z";

/// Rows of a cluster.
#[derive(Clone, Default)]
struct Rows(Snapshot);

impl Rows {
    fn of(version: u32) -> Rows {
        let mut rows = Rows::default();
        rows.put("schema", 1, 1, &json!({"version": version, "min_reader": version, "min_writer": version}));
        rows
    }

    fn put(&mut self, key: &str, create_revision: i64, mod_revision: i64, value: &serde_json::Value) {
        let value = value.to_string().into();
        self.0.put(&Entry { key: key.into(), value, create_revision, mod_revision, lease: None });
    }

    /// Registers an app with the procs of one rev, as an rm of an earlier release does.
    fn app(mut self, name: &str, at: i64, procs: &[(&str, u16)]) -> Rows {
        let app = json!({"owner": "ada", "created_at": AT, "token": format!("{name}-{at}")});
        self.put(&format!("apps/{name}"), at, at, &app);
        let commands: BTreeMap<&str, &str> = procs.iter().map(|(proc, _)| (*proc, "run")).collect();
        let slug = json!({"sha256": "0".repeat(64), "size_bytes": 1});
        let rev = json!({"slug": slug, "procs": commands, "kind": "procfile", "by": "ada", "at": AT});
        self.put(&format!("apps/{name}/revs/{}", "1".repeat(40)), at, at, &rev);
        for (proc, port) in procs {
            self.put(&format!("apps/{name}/procs/{proc}"), at, at, &json!({"port": port}));
        }
        self
    }

    /// Writes the row of a port.
    fn given(mut self, port: u16, service: &str, token: &str) -> Rows {
        let (app, proc) = service.split_once('/').expect("APP/PROC");
        let row = json!({"app": app, "proc": proc, "token": token, "at": AT});
        self.put(&format!("ports/{port}"), i64::from(port), i64::from(port), &row);
        self
    }

    /// Writes a proc's row as one of the app's people could.
    fn named(mut self, service: &str, port: u16) -> Rows {
        let (app, proc) = self::service(service);
        let created = self.0.apps[&app].procs.get(&proc).map_or(90, |row| row.create_revision);
        self.put(&format!("apps/{app}/procs/{proc}"), created, 90, &json!({"port": port}));
        self
    }

    fn book(&self) -> PortBook<'_> {
        PortBook::of(&self.0)
    }

    /// Returns each service with its port, or the reason why it has none.
    fn services(&self) -> Vec<String> {
        let all = self.book().services();
        for ((app, proc), port) in &all {
            assert_eq!(self.book().port(app, proc), *port, "one service is judged as all are");
        }
        let words = |port: Result<u16, Denied>| port.map_or_else(|why| why.to_string(), |n| n.to_string());
        all.into_iter().map(|((app, proc), port)| format!("{app}/{proc} {}", words(port))).collect()
    }

    fn steps(&self) -> Vec<Step> {
        self.book().steps(AT.parse().expect("a time"))
    }
}

fn service(name: &str) -> Service {
    let (app, proc) = name.split_once('/').expect("APP/PROC");
    (app.parse().expect("valid"), proc.parse().expect("valid"))
}

fn both(version: u32) -> Rows {
    let rows = Rows::of(version).app("aaa", 3, &[("web", 8501)]).app("shop", 4, &[("web", 8502)]);
    rows.given(8501, "aaa/web", "aaa-3").given(8502, "shop/web", "shop-4")
}

#[test]
fn a_port_stays_where_its_row_says_whatever_an_apps_people_write() {
    for version in [2, 3] {
        let wanted = ["aaa/web 8501", "shop/web 8502"];
        assert_eq!(both(version).services(), wanted);
        assert_eq!(both(version).named("aaa/web", 8502).services(), wanted, "another's port");
        assert_eq!(both(version).named("aaa/web", 22).named("shop/web", 8501).services(), wanted);
    }
}

#[test]
fn a_proc_without_a_row_has_no_port_from_version_3_on() {
    let evil = both(3).named("aaa/evil", 8502).named("aaa/fresh", 9000);
    let none = "bazooka-rm has given it no port: push it again";
    let services = [
        format!("aaa/evil {none}"),
        format!("aaa/fresh {none}"),
        "aaa/web 8501".into(),
        "shop/web 8502".into(),
    ];
    assert_eq!(evil.services(), services);
    assert_eq!(evil.steps(), [], "only a push registers");
}

#[test]
fn before_version_3_a_row_still_beats_a_name() {
    let evil = both(2).named("aaa/evil", 8502).named("aaa/fresh", 9000);
    assert_eq!(
        evil.services(),
        ["aaa/evil port 8502 is given to shop/web", "aaa/fresh 9000", "aaa/web 8501", "shop/web 8502"]
    );
}

#[test]
fn rows_that_an_earlier_release_left_out_are_written_by_rank() {
    let old = || Rows::of(2).app("aaa", 3, &[("web", 8501)]).app("shop", 4, &[("job", 8503), ("web", 8502)]);
    let give = |name: &str, port| Step::Give(service(name), ServicePort(port));
    assert_eq!(old().steps(), [give("aaa/web", 8501), give("shop/job", 8503), give("shop/web", 8502)]);
    // The elder app's people name the port of an untouched row: that row is right.
    let stolen = old().named("aaa/web", 8502);
    let another = |name: &str| Step::GiveAnother(service(name));
    assert_eq!(stolen.steps(), [another("aaa/web"), give("shop/job", 8503), give("shop/web", 8502)]);
    assert_eq!(old().named("aaa/web", 22).steps()[0], another("aaa/web"), "a port of the machine's own");
    // A row that nobody has registered gets none.
    assert_eq!(old().named("aaa/evil", 9000).steps(), old().steps());
    assert_eq!(old().named("aaa/evil", 9000).book().not_given().len(), 3);
    // Nothing is given while a row of a port cannot be read: it may be the missing one.
    let mut unreadable = old();
    unreadable.put("ports/8503", 5, 5, &json!("?"));
    assert_eq!(unreadable.steps(), []);
}

#[test]
fn the_write_of_a_row_is_guarded_on_the_row_that_named_the_port() {
    let rows = Rows::of(2).app("aaa", 3, &[("web", 8501)]);
    let step = Step::Give(service("aaa/web"), ServicePort(8501));
    let change = change(&rows.0, &step, AT.parse().expect("a time")).expect("it asks for it");
    let when = format!("{change:?}");
    for guard in ["\"apps/aaa\", 3", "\"apps/aaa/procs/web\", 3", "\"ports/8501\", 0"] {
        assert!(when.contains(guard), "{guard}: {when}");
    }
}

#[test]
fn a_port_rests_for_an_hour_after_its_app() {
    let mut gone = both(3);
    gone.0.apps.remove(&"shop".parse::<AppName>().expect("valid"));
    assert_eq!(gone.steps(), [Step::Free(ServicePort(8502))], "a release before left the row");
    let again = gone.clone().app("shop", 70, &[]).named("shop/web", 8502);
    assert_eq!(again.steps(), [Step::Free(ServicePort(8502))], "a later app of the name has no claim to it");
    assert!(again.services()[1].starts_with("shop/web bazooka-rm has given"), "{:?}", again.services());
    for (freed, steps) in
        [("2026-11-30T11:30:00Z", vec![]), ("2026-11-30T11:00:00Z", vec![Step::Forget(ServicePort(8502))])]
    {
        let row = json!({"app": "shop", "proc": "web", "token": "shop-4", "at": AT, "freed_at": freed});
        gone.put("ports/8502", 5, 6, &row);
        assert_eq!(gone.steps(), steps);
        assert!(gone.book().next_end_of_rest().is_some());
        assert!(!gone.book().free(8500).any(|port| port == 8502), "a row is no free port");
    }
}

#[test]
fn ports_are_given_upwards_then_again_and_never_from_the_ephemeral_ones() {
    let next = |rows: &Rows, counter: u64| rows.book().free(counter).take(3).collect::<Vec<_>>();
    assert_eq!(next(&both(3), 0), [8503, 8504, 8505], "none of a row's");
    assert_eq!(next(&both(3), 9000), [9001, 9002, 9003]);
    assert_eq!(next(&both(3), 32_766), [32_767, 8503, 8504], "those below, again");
    assert_eq!(next(&both(3), 60_000), [8503, 8504, 8505], "an earlier release went higher");
    assert_eq!(next(&both(3), u64::MAX), [8503, 8504, 8505]);
    assert_eq!(next(&both(2), 32_766), [32_767, 32_768, 32_769], "below may be one without a row");
    assert_eq!(next(&both(2), 65_534), [65_535]);
    let all = both(3).book().free(20_000).collect::<BTreeSet<_>>();
    assert_eq!(all.len(), usize::from(SERVICE_PORT_LAST - SERVICE_PORT_BASE) - 2);
}

#[test]
fn of_two_rows_of_one_service_the_one_that_its_proc_names_counts_else_the_elder() {
    let two = both(3).given(9000, "aaa/web", "aaa-3");
    assert_eq!(two.services()[0], "aaa/web 8501");
    assert_eq!(two.clone().named("aaa/web", 9000).services()[0], "aaa/web 9000");
    assert_eq!(two.named("aaa/web", 22).services()[0], "aaa/web 8501");
}

#[test]
fn revs_are_dropped_once_they_do_not_count() {
    let revs = |image: &PortImage| image.snapshot().apps.values().map(|view| view.revs.len()).sum::<usize>();
    let mut image = PortImage(both(2).0);
    assert_eq!(revs(&image), 2);
    let entry = |key: &str, value: serde_json::Value| Entry {
        key: key.into(),
        value: value.to_string().into(),
        create_revision: 1,
        mod_revision: 99,
        lease: None,
    };
    let shop: AppName = "shop".parse().expect("valid");
    let rev = image.snapshot().apps[&shop].revs.values().next().expect("it has one").value.clone();
    image.put(&entry("schema", json!({"version": 3, "min_reader": 3, "min_writer": 3})));
    let rev = serde_json::to_value(rev).expect("it is JSON");
    image.put(&entry(&format!("apps/shop/revs/{}", "2".repeat(40)), rev));
    assert_eq!(revs(&image), 0);
    assert_eq!(image.snapshot().ports.len(), 2);
}
