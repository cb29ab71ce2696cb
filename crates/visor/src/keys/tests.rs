//! Tests of keys: each is spelled and read as it always was.

use super::*;
use crate::rows::ROWS;

/// Returns every kind of key with the spelling that stands in the coordinators of all versions.
fn spellings() -> Vec<(Key, &'static str)> {
    let a: AppName = "goto-rocket".parse().expect("valid");
    let p: ProcName = "web".parse().expect("valid");
    let h: HostName = "app1.example.org".parse().expect("valid");
    let r: RevId = "16f7cbf0123456789012345678901234567890ab".parse().expect("valid");
    vec![
        (Key::Schema, "schema"),
        (Key::InstanceCounter, "counters/instance"),
        (Key::PortCounter, "counters/port"),
        (Key::Port(ServicePort(8501)), "ports/8501"),
        (Key::App(a.clone()), "apps/goto-rocket"),
        (Key::Rev(a.clone(), r), "apps/goto-rocket/revs/16f7cbf0123456789012345678901234567890ab"),
        (Key::Proc(a.clone(), p.clone()), "apps/goto-rocket/procs/web"),
        (Key::Env(a.clone(), EnvRef(3)), "apps/goto-rocket/envs/e3"),
        (Key::Wraps(a.clone(), EnvRef(3)), "private/wraps/goto-rocket/e3"),
        (Key::EarlierWraps(a.clone(), EnvRef(3)), "wraps/goto-rocket/e3"),
        (
            Key::WrapRequest(h.clone(), a.clone(), EnvRef(3), h.clone()),
            "private/wrapping/app1.example.org/goto-rocket/e3/app1.example.org",
        ),
        (Key::Handed(h.clone(), a.clone(), EnvRef(3)), "sealed/app1.example.org/goto-rocket/e3"),
        (Key::Serving(h.clone(), a.clone(), InstanceId(7)), "serving/app1.example.org/goto-rocket/7"),
        (Key::Release(a.clone(), ReleaseId(12)), "apps/goto-rocket/releases/v12"),
        (Key::Head(a.clone()), "apps/goto-rocket/head"),
        (Key::Trial(a.clone()), "apps/goto-rocket/trial"),
        (Key::Pause(a.clone()), "apps/goto-rocket/pause"),
        (Key::Formation(a.clone(), p.clone()), "apps/goto-rocket/formation/web"),
        (Key::Instance(a.clone(), InstanceId(4617216)), "apps/goto-rocket/instances/4617216"),
        (Key::Pending(a.clone(), p.clone()), "apps/goto-rocket/pending/web"),
        (Key::Domain("a.example.org".parse().expect("valid")), "domains/a.example.org"),
        (Key::Repo(a.clone()), "repos/goto-rocket"),
        (Key::Turn(a.clone()), "turns/goto-rocket"),
        (Key::Stored(a.clone()), "stored/goto-rocket"),
        (Key::Host(h.clone()), "hosts/app1.example.org"),
        (Key::Archives(h.clone()), "archives/app1.example.org"),
        (Key::HostMeta(h.clone()), "hostmeta/app1.example.org"),
        (Key::Assigned(h.clone(), InstanceId(1)), "assigned/app1.example.org/1"),
        (Key::Status(h.clone(), InstanceId(1)), "status/app1.example.org/1"),
        (Key::Proxy(h.clone()), "proxies/app1.example.org"),
        (Key::Rm(h.clone()), "rms/app1.example.org"),
        (Key::Ask(h.clone()), "private/asks/app1.example.org"),
        (Key::EarlierAsk(h), "asks/app1.example.org"),
        (Key::Leader, "election/converger"),
        (Key::Unfreeze, "unfreeze"),
        (Key::Ended(a.clone(), p, InstanceId(9)), "history/goto-rocket/web/9"),
        (Key::Access(a), "access/goto-rocket"),
        (Key::SshKeys("ada".parse().expect("valid")), "keys/ada"),
        (Key::Day("2026-11-26".parse().expect("valid")), "stats/2026-11-26"),
        (
            Key::Audit("rm:r1".parse().expect("valid"), "1795660630615-00ff00ff".parse().expect("valid")),
            "audit/rm:r1/1795660630615-00ff00ff",
        ),
        (Key::Admission("ada".parse().expect("valid")), "identities/ada"),
        (Key::Admission("pm:app1.example.org".parse().expect("valid")), "identities/pm:app1.example.org"),
    ]
}

#[test]
fn a_key_is_spelled_as_ever_and_read_back_as_it_was_written() {
    for (key, spelling) in spellings() {
        assert_eq!(key.to_string(), spelling);
        assert_eq!(spelling.parse(), Ok(key));
    }
}

#[test]
fn each_row_has_its_spelling_in_this_test() {
    let spelled: Vec<RowKind> = spellings().iter().map(|(key, _)| key.kind()).collect();
    let missing: Vec<_> = ROWS.iter().map(|row| row.kind).filter(|kind| !spelled.contains(kind)).collect();
    assert_eq!(missing, []);
}

#[test]
fn a_key_belongs_to_the_app_that_it_names() {
    for (key, spelling) in spellings() {
        let app = key.app().map(AppName::as_str);
        assert_eq!(app, spelling.contains("goto-rocket").then_some("goto-rocket"), "{spelling}");
    }
}

#[test]
fn a_range_ends_before_the_first_name_that_is_not_given() {
    let all = |kind: RowKind, names: &[(&str, &str)]| range(kind.row(), names);
    assert_eq!(all(RowKind::Schema, &[]), Keys::One("schema".into()));
    assert_eq!(all(RowKind::Rev, &[]), Keys::Prefix("apps/".into()));
    assert_eq!(all(RowKind::Rev, &[("app", "a")]), Keys::Prefix("apps/a/revs/".into()));
    assert_eq!(all(RowKind::Head, &[("app", "a")]), Keys::One("apps/a/head".into()));
    assert_eq!(all(RowKind::Rm, &[("host", "h")]), Keys::Prefix("rms/".into()));
}

#[test]
fn scopes_are_what_they_ever_were() {
    let (a, h) = ("a".parse().expect("valid"), "h".parse().expect("valid"));
    let shown = |scopes: Vec<Keys>| -> Vec<String> {
        let shown = |keys| match keys {
            Keys::One(key) => key,
            Keys::Prefix(key) => format!("{key}*"),
        };
        scopes.into_iter().map(shown).collect()
    };
    assert_eq!(shown(app(&a)), ["apps/a", "apps/a/*", "repos/a"]);
    let services = [
        "apps/a",
        "apps/a/head",
        "apps/a/revs/*",
        "apps/a/procs/*",
        "apps/a/releases/*",
        "apps/a/formation/*",
    ];
    assert_eq!(shown(services_of(&a)), services);
    assert_eq!(shown(host(&h)), ["hosts/h", "hostmeta/h", "assigned/h/*", "status/h/*"]);
    assert_eq!(shown(deleted_with(&a)), ["private/wraps/a/*", "wraps/a/*", "history/a/*", "apps/a/*"]);
    assert_eq!(shown(wraps_of(&a)), ["private/wraps/a/*", "wraps/a/*"]);
    assert_eq!(shown(wraps()), ["private/wraps/*", "wraps/*", "private/wrapping/*"]);
    assert_eq!(shown(asks()), ["private/asks/*", "asks/*"]);
    assert_eq!(shown(deleted_beside(&a)), ["apps/a", "repos/a", "stored/a", "access/a"]);
    for (scope, wanted) in [
        (instances_of(&a), "apps/a/instances/*"),
        (procs_of(&a), "apps/a/procs/*"),
        (pending_of(&a), "apps/a/pending/*"),
        (history_of(&a), "history/a/*"),
        (assigned_to(&h), "assigned/h/*"),
        (status_of(&h), "status/h/*"),
        (handed_to(&h), "sealed/h/*"),
        (served_by(&h), "serving/h/*"),
        (all_assigned(), "assigned/*"),
        (all_statuses(), "status/*"),
        (private(), "private/*"),
        (wrap_requests_to(&h), "private/wrapping/h/*"),
        (apps(), "apps/*"),
        (repos(), "repos/*"),
        (turns(), "turns/*"),
        (stored(), "stored/*"),
        (access(), "access/*"),
        (identities(), "identities/*"),
        (ssh_keys(), "keys/*"),
        (audit(), "audit/*"),
        (days(), "stats/*"),
        (rms(), "rms/*"),
        (proxies(), "proxies/*"),
        (hosts(), "hosts/*"),
        (host_metas(), "hostmeta/*"),
        (schema(), "schema"),
    ] {
        assert_eq!(shown(vec![scope]), [wanted]);
    }
}

#[test]
fn what_a_scale_reads_of_an_app_leaves_its_instances_out() {
    let a: AppName = "goto-rocket".parse().expect("valid");
    let p: ProcName = "web".parse().expect("valid");
    let read = services_of(&a);
    let reads = |key: Key| read.iter().any(|keys| keys.contains(&key.to_string()));
    assert!(reads(Key::App(a.clone())) && reads(Key::Head(a.clone())));
    assert!(reads(Key::Release(a.clone(), ReleaseId(1))) && reads(Key::Proc(a.clone(), p.clone())));
    assert!(reads(Key::Formation(a.clone(), p.clone())));
    assert!(!reads(Key::Instance(a, InstanceId(1))));
    assert!(!reads(Key::Formation("goto".parse().expect("valid"), p)));
}

#[test]
fn a_key_of_another_version_is_said_to_be_unknown() {
    for key in ["", "apps", "apps/a/b", "apps/a/heads", "hosts/a/b", "new/key"] {
        assert_eq!(key.parse::<Key>(), Err(KeyError::Unknown(key.to_owned())));
    }
}

#[test]
fn a_key_with_a_name_that_breaks_its_rule_tells_the_rule() {
    for (key, kind) in [
        ("apps/", "app name"),
        ("apps/A", "app name"),
        ("apps/a/revs/xyz", "rev"),
        ("status/h/x", "instance id"),
        ("audit/root/1795660630615-00ff00ff", "user name"),
    ] {
        match key.parse::<Key>() {
            Err(KeyError::Name { key: of, source }) => assert_eq!((of.as_str(), source.kind), (key, kind)),
            other => panic!("{key}: {other:?}"),
        }
    }
}
