//! Tests that break each invariant by hand, find it, and mend it where that is possible.

use serde_json::{Value, json};

use super::*;
use crate::{
    seal::{Keyring, Os, SecretKey, Vars},
    store::Op,
    visor::Change,
};

fn port(app: &str, proc: &str, token: &str) -> Value {
    json!({"app": app, "proc": proc, "token": token, "at": "2026-01-01T00:00:00Z"})
}

/// The rows of a coordinator.
struct Rows {
    entries: Vec<Entry>,
    revision: Revision,
}

impl Rows {
    /// Returns a small, correct cluster: an app with two releases, one instance on host1, config vars.
    fn sound() -> Rows {
        let mut rows = Rows { entries: Vec::new(), revision: 0 };
        let at = "2026-01-01T00:00:00Z";
        let (rev, digest) = ("a".repeat(40), "0".repeat(64));
        let release = |env: &str, status: &str| {
            json!({"rev": "a".repeat(40), "env": env, "by": "me", "at": at, "reason": "push", "status": status,
                "token": "x"})
        };
        let slug = json!({"sha256": digest, "size_bytes": 1});
        let assignment = json!({"desired": "run", "app": "a", "proc": "web", "release": "v2", "rev": rev, "env": "e1",
            "slug": slug, "command": "run", "index": 0});
        let index = json!({"host": "host1", "proc": "web", "release": "v2", "rev": rev, "index": 0, "placed_at": at,
            "reason": "test"});
        rows.put("schema", json!({"version": 3, "min_reader": 3, "min_writer": 3}));
        rows.put("ports/8501", port("a", "web", "t"));
        rows.put("counters/instance", json!(7));
        rows.put("counters/port", json!(8501));
        rows.put("apps/a", json!({"owner": "me", "created_at": at, "token": "t"}));
        rows.put(
            &format!("apps/a/revs/{rev}"),
            json!({"slug": slug, "procs": {"web": "run"}, "kind": "procfile", "by": "me", "at": at}),
        );
        rows.put("apps/a/procs/web", json!({"port": 8501}));
        rows.put("apps/a/envs/e1", json!({"vars": {}, "by": "me", "at": at}));
        rows.put("wraps/a/e1", json!({}));
        rows.put("apps/a/releases/v1", release("e0", "released"));
        rows.put("apps/a/releases/v2", release("e1", "released"));
        rows.put("apps/a/head", json!({"release": "v2"}));
        rows.put("apps/a/formation/web", json!({"count": 1}));
        rows.put("repos/a", json!({"url": "http://rm/a.git", "token": "t"}));
        rows.put("assigned/host1/7", assignment);
        rows.put("apps/a/instances/7", index);
        rows.put("status/host1/7", json!({"state": "running", "since": at}));
        rows.put("stats/2026-01-01", json!({"counted_at": at}));
        rows.leased("rms/r1", json!({"url": "http://rm", "version": "0"}));
        rows
    }

    fn put(&mut self, key: &str, value: Value) {
        self.write(key, value.to_string(), None);
    }

    fn leased(&mut self, key: &str, value: Value) {
        self.write(key, value.to_string(), Some(1));
    }

    fn write(&mut self, key: &str, value: String, lease: Option<i64>) {
        self.delete(key);
        self.revision += 1;
        let revision = self.revision;
        let (key, value) = (key.to_owned(), value.into());
        self.entries.push(Entry { key, value, create_revision: revision, mod_revision: revision, lease });
    }

    fn delete(&mut self, key: &str) {
        self.entries.retain(|entry| entry.key != key);
    }

    fn edit(&mut self, key: &str, field: &str, value: Value) {
        let entry = self.entries.iter().find(|entry| entry.key == key).expect("it is there");
        let (mut row, lease): (Value, _) =
            (serde_json::from_slice(&entry.value).expect("valid"), entry.lease);
        row[field] = value;
        self.write(key, row.to_string(), lease);
    }

    fn findings(&self) -> Vec<Finding> {
        findings(&Stock::of(&self.entries, self.revision).snapshot)
    }

    /// Commits a change, if its conditions hold.
    fn commit(&mut self, change: &Change) -> bool {
        use crate::store::Compare;
        let find = |key: &String| self.entries.iter().find(|entry| entry.key == *key);
        let holds = change.when.iter().all(|compare| match compare {
            Compare::ModRevision(key, revision) => find(key).map_or(0, |e| e.mod_revision) == *revision,
            Compare::CreateRevision(key, revision) => find(key).map_or(0, |e| e.create_revision) == *revision,
            Compare::Exists(key) => find(key).is_some(),
            Compare::NoneSince(keys, revision) => {
                !self.entries.iter().any(|e| keys.contains(&e.key) && e.mod_revision > *revision)
            }
        });
        for op in change.then.iter().filter(|_| holds) {
            match op {
                Op::Put { key, value, lease } => {
                    let value = String::from_utf8(value.to_vec()).expect("JSON");
                    self.write(key, value, *lease);
                }
                Op::Delete(crate::store::Keys::One(key)) => self.delete(key),
                other => panic!("{other:?} isn't used by any"),
            }
        }
        holds
    }
}

fn told(findings: &[Finding]) -> Vec<(String, &'static str)> {
    findings.iter().map(|finding| (finding.key.clone(), finding.rule)).collect()
}

/// A broken invariant: its name, how to break it, the expected findings, and whether it can be mended.
type Case = (&'static str, fn(&mut Rows), Vec<(&'static str, &'static str)>, bool);

fn cases() -> Vec<Case> {
    vec![
        ("no schema", |rows| rows.delete("schema"), vec![("schema", "schema-missing")], false),
        (
            "a row that can't be read and is needed",
            |rows| rows.write("hostmeta/host1", "{".into(), None),
            vec![("hostmeta/host1", "unreadable")],
            false,
        ),
        (
            "one that is told anew",
            |rows| rows.write("stats/2026-01-02", "{".into(), None),
            vec![("stats/2026-01-02", "unreadable")],
            true,
        ),
        (
            "one of a daemon",
            |rows| rows.write("proxies/p", "{".into(), Some(1)),
            vec![("proxies/p", "unreadable")],
            false,
        ),
        (
            "an id that would be given twice",
            |rows| rows.put("counters/instance", json!(6)),
            vec![("counters/instance", "counter-behind")],
            true,
        ),
        (
            "no counter at all, while an earlier release may count on it",
            |rows| {
                rows.edit("schema", "version", json!(2));
                rows.delete("counters/port");
            },
            vec![("counters/port", "port-counter-behind")],
            true,
        ),
        (
            "a setting out of bounds",
            |rows| rows.edit("apps/a/procs/web", "batch", json!(0)),
            vec![("apps/a/procs/web", "setting-out-of-bounds")],
            false,
        ),
        (
            "a formation of more than a service may have",
            |rows| rows.edit("apps/a/formation/web", "count", json!(u32::MAX)),
            vec![("apps/a/formation/web", "out-of-bounds")],
            false,
        ),
        (
            "a formation that lists too much",
            |rows| {
                let zones: serde_json::Map<_, _> = (0..300).map(|n| (format!("z{n}"), json!(1))).collect();
                rows.edit("apps/a/formation/web", "zones", zones.into());
            },
            vec![("apps/a/formation/web", "unreadable")],
            false,
        ),
        (
            "a check that would ask another host",
            |rows| {
                let check = json!({"check": {"http": {"path": "@169.254.169.254/"}}});
                rows.edit("apps/a/procs/web", "run", check);
                rows.delete("counters/port");
            },
            vec![("apps/a/procs/web", "unreadable")],
            false,
        ),
        (
            "a row of more bytes than such a row has",
            |rows| rows.edit("apps/a/procs/web", "note", "x".repeat(20 << 10).into()),
            vec![("apps/a/procs/web", "unreadable")],
            false,
        ),
        (
            "a host that says what its operator says otherwise",
            |rows| {
                let host = json!({"address": "10.0.0.1", "url": "http://10.0.0.1:1", "zone": "b", "version": "1",
                    "capacity": {"memory_bytes": 1, "instances": 9}, "isolation": "none", "boot_id": "b",
                    "since": "2026-01-01T00:00:00Z", "token": "t"});
                rows.leased("hosts/host1", host);
                rows.put("hostmeta/host1", json!({"zone": "a", "most_instances": 3}));
            },
            vec![("hosts/host1", "host-says-otherwise")],
            false,
        ),
        (
            "an app without its own row",
            |rows| rows.delete("apps/a"),
            vec![("apps/a", "app-missing"), ("assigned/host1/7", "instance-of-no-app")],
            false,
        ),
        (
            "an ended instance of an app that isn't there",
            |rows| {
                let gone = ["apps/a", "wraps/a/e1", "repos/a", "ports/8501"];
                rows.entries.retain(|e| !gone.contains(&&*e.key) && !e.key.starts_with("apps/a/"));
                rows.edit("status/host1/7", "state", json!("exited"));
            },
            vec![("assigned/host1/7", "instance-of-no-app")],
            true,
        ),
        (
            "leftovers of an app",
            |rows| {
                rows.put("repos/b", json!({"url": "u"}));
                rows.put("apps/b/formation/web", json!({"count": 1}));
                rows.put("apps/b/pause", json!({"by": "me", "at": "2026-01-01T00:00:00Z"}));
            },
            vec![
                ("apps/b/formation/web", "row-of-no-app"),
                ("apps/b/pause", "row-of-no-app"),
                ("repos/b", "row-of-no-app"),
            ],
            true,
        ),
        (
            "whose an app is that isn't there",
            |rows| rows.put("access/b", json!({})),
            vec![("access/b", "row-of-no-app")],
            false,
        ),
        (
            "a release without its rev",
            |rows| rows.edit("apps/a/releases/v1", "rev", json!("b".repeat(40))),
            vec![("apps/a/releases/v1", "release-without-rev")],
            false,
        ),
        (
            "a release without its vars",
            |rows| rows.edit("apps/a/releases/v1", "env", json!("e9")),
            vec![("apps/a/releases/v1", "release-without-env")],
            false,
        ),
        (
            "a head that names no release",
            |rows| rows.put("apps/a/head", json!({"release": "v9"})),
            vec![("apps/a/head", "head-without-release")],
            false,
        ),
        (
            "a head that was never released",
            |rows| rows.edit("apps/a/releases/v2", "status", json!("failed")),
            vec![("apps/a/releases/v2", "head-not-released")],
            true,
        ),
        (
            "a trial of nothing",
            |rows| rows.leased("apps/a/trial", json!({"release": "v9", "promote": "pusher"})),
            vec![("apps/a/trial", "trial-without-release")],
            true,
        ),
        (
            "a trial that is over",
            |rows| rows.leased("apps/a/trial", json!({"release": "v1", "promote": "pusher"})),
            vec![("apps/a/trial", "trial-over")],
            true,
        ),
        (
            "a push's trial that would never end",
            |rows| {
                rows.edit("apps/a/releases/v1", "status", json!("trying"));
                rows.put("apps/a/trial", json!({"release": "v1", "promote": "pusher"}));
            },
            vec![("apps/a/trial", "trial-without-lease")],
            true,
        ),
        (
            "a formation of an unknown proc",
            |rows| rows.put("apps/a/formation/job", json!({"count": 1})),
            vec![("apps/a/formation/job", "formation-without-proc")],
            true,
        ),
        (
            "a formation of a proc that isn't registered, and runs",
            |rows| {
                rows.delete("apps/a/procs/web");
                rows.delete("counters/port");
            },
            vec![("apps/a/formation/web", "formation-without-proc")],
            false,
        ),
        (
            "a canary of nothing",
            |rows| rows.edit("apps/a/formation/web", "beside", json!({"v9": 1})),
            vec![("apps/a/formation/web", "beside-without-release")],
            true,
        ),
        (
            "a shortage of nothing",
            |rows| {
                rows.put(
                    "apps/a/pending/job",
                    json!({"release": "v2", "short": 1, "reason": "", "since": "2026-01-01T00:00:00Z"}),
                );
            },
            vec![("apps/a/pending/job", "pending-of-nothing")],
            true,
        ),
        (
            "a domain that leads nowhere",
            |rows| rows.put("domains/www.example.org", json!({"app": "b"})),
            vec![("domains/www.example.org", "domain-without-app")],
            true,
        ),
        (
            "the repository of an earlier app",
            |rows| rows.edit("repos/a", "token", json!("s")),
            vec![("repos/a", "repository-of-another")],
            false,
        ),
        (
            "wraps of nothing",
            |rows| rows.put("wraps/a/e9", json!({})),
            vec![("wraps/a/e9", "wraps-of-nothing")],
            true,
        ),
        (
            "a row that names the port of another service, before version 3",
            |rows| {
                rows.edit("schema", "version", json!(2));
                rows.put("apps/a/procs/web2", json!({"port": 8501}));
            },
            vec![("apps/a/procs/web2", "port-shared")],
            false,
        ),
        (
            "a service whose port an earlier release gave, and no rm has written down",
            |rows| {
                rows.edit("schema", "version", json!(2));
                rows.edit("rms/r1", "schema", json!(3));
                rows.delete("ports/8501");
            },
            vec![("apps/a/procs/web", "port-missing")],
            false,
        ),
        (
            "a service without a port",
            |rows| rows.put("apps/a/procs/web2", json!({"port": 8501})),
            vec![("apps/a/procs/web2", "port-missing")],
            false,
        ),
        (
            "a row that names another port than its service has",
            |rows| rows.edit("apps/a/procs/web", "port", json!(9000)),
            vec![("apps/a/procs/web", "port-otherwise")],
            true,
        ),
        (
            "two ports of one service",
            |rows| rows.put("ports/8502", port("a", "web", "t")),
            vec![("ports/8502", "port-of-two")],
            true,
        ),
        (
            "the port of an app that isn't there",
            |rows| rows.put("ports/8502", port("b", "web", "t")),
            vec![("ports/8502", "port-of-nothing")],
            true,
        ),
        (
            "the port of an earlier app of that name",
            |rows| rows.put("ports/8502", port("a", "web", "s")),
            vec![("ports/8502", "port-of-nothing")],
            true,
        ),
        (
            "an index without an assignment",
            |rows| {
                rows.delete("assigned/host1/7");
                rows.delete("status/host1/7");
            },
            vec![("apps/a/instances/7", "index-without-assignment")],
            true,
        ),
        (
            "an assignment without an index",
            |rows| rows.delete("apps/a/instances/7"),
            vec![("assigned/host1/7", "assignment-without-index")],
            true,
        ),
        (
            "an index that says something else",
            |rows| rows.edit("apps/a/instances/7", "release", json!("v1")),
            vec![("apps/a/instances/7", "index-differs")],
            true,
        ),
        (
            "one that is assigned twice",
            |rows| {
                let row =
                    rows.entries.iter().find(|entry| entry.key == "assigned/host1/7").expect("it is there");
                let text = String::from_utf8(row.value.to_vec()).expect("JSON");
                rows.write("assigned/host2/7", text, None);
            },
            vec![("assigned/host2/7", "assigned-twice")],
            false,
        ),
        (
            "one of a release that isn't there",
            |rows| {
                rows.edit("assigned/host1/7", "release", json!("v9"));
                rows.edit("apps/a/instances/7", "release", json!("v9"));
            },
            vec![("assigned/host1/7", "instance-of-no-release")],
            false,
        ),
        (
            "a word on what isn't assigned",
            |rows| rows.put("status/host2/5", json!({"state": "lost", "since": "2026-01-01T00:00:00Z"})),
            vec![("status/host2/5", "status-without-assignment")],
            true,
        ),
        (
            "vars on a host that runs nothing with them",
            |rows| {
                let ring = Keyring::of(SecretKey::fresh(&mut Os));
                let (app, env) = ("a".parse().expect("valid"), "e9".parse().expect("valid"));
                let handed = ring.keep(&app, env, &Vars::default(), &mut Os);
                rows.put("sealed/host2/a/e9", serde_json::to_value(handed).expect("valid"));
            },
            vec![("sealed/host2/a/e9", "sealed-of-nothing")],
            true,
        ),
        (
            "a daemon's row that would stay",
            |rows| rows.put("rms/r2", json!({"url": "http://rm", "version": "0"})),
            vec![("rms/r2", "presence-without-lease")],
            true,
        ),
    ]
}

#[test]
fn what_is_as_it_should_be_has_no_findings() {
    assert_eq!(told(&Rows::sound().findings()), []);
    assert_eq!(told(&Rows { entries: Vec::new(), revision: 0 }.findings()), []);
}

#[test]
fn each_broken_invariant_is_found_and_mended_where_it_can_be() {
    for (what, break_it, expected, mendable) in cases() {
        let mut rows = Rows::sound();
        break_it(&mut rows);
        let found = rows.findings();
        let expected: Vec<(String, &str)> =
            expected.into_iter().map(|(key, rule)| (key.to_owned(), rule)).collect();
        assert_eq!(told(&found), expected, "{what}");
        assert_eq!(found.iter().any(|finding| finding.mendable), mendable, "{what}");
        for finding in &found {
            assert!(!finding.remedy.is_empty() && !finding.what.is_empty(), "{what}");
            // An earlier mend may have removed this one too.
            if let Some(change) = &finding.mend {
                rows.commit(change);
            }
        }
        if mendable {
            assert_eq!(told(&rows.findings()), [], "{what}");
        }
    }
}

#[test]
fn what_was_changed_meanwhile_is_left_alone() {
    let mut rows = Rows::sound();
    rows.delete("assigned/host1/7");
    rows.delete("status/host1/7");
    let found = rows.findings();
    rows.edit("apps/a/instances/7", "reason", json!("another's"));
    let change = found[0].mend.as_ref().expect("it can be mended");
    assert!(!rows.commit(change));
    assert_eq!(told(&rows.findings()), [("apps/a/instances/7".to_owned(), "index-without-assignment")]);
}

#[test]
fn what_a_converger_clears_up_counts_only_if_it_stays() {
    let mut rows = Rows::sound();
    rows.put("wraps/a/e9", json!({}));
    let row = json!({"release": "v2", "short": 1, "reason": "", "since": "2026-01-01T00:00:00Z"});
    rows.put("apps/a/pending/job", row);
    let both = rows.findings();
    assert_eq!(both.len(), 2);
    let lasting_rules = |earlier: &[Finding]| -> Vec<&str> {
        lasting(earlier, rows.findings()).iter().map(|finding| finding.rule).collect()
    };
    assert_eq!(lasting_rules(&[]), ["wraps-of-nothing"]);
    assert_eq!(lasting_rules(&both), ["pending-of-nothing", "wraps-of-nothing"]);
}

#[test]
fn a_key_of_another_version_is_told_and_is_no_finding() {
    let mut rows = Rows::sound();
    rows.put("news/of-tomorrow", json!({}));
    let stock = Stock::of(&rows.entries, rows.revision);
    assert_eq!(told(&findings(&stock.snapshot)), []);
    assert_eq!(stock.unknown, ["news/of-tomorrow"]);
}
