//! Tests of rights: what each identity may do, and the steps to etcd's users and roles.

use proptest::prelude::*;

use super::*;
use crate::{
    snapshot::Snapshot,
    store::{Entry, Image, Revision},
};

fn caller(name: &str) -> Caller {
    Caller::Known(name.parse().expect("valid"))
}

fn snapshot(rows: &[(&str, &str)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (at, (key, value)) in rows.iter().enumerate() {
        let revision = Revision::try_from(at + 1).expect("few rows");
        snapshot.put(&Entry {
            key: (*key).into(),
            value: (*value).to_owned().into(),
            create_revision: revision,
            mod_revision: revision,
            lease: None,
        });
    }
    assert!(snapshot.unreadable.is_empty(), "{:?}", snapshot.unreadable);
    snapshot
}

const APP: &str = r#"{"owner":"ada","created_at":"2026-01-01T00:00:00Z","token":"t"}"#;
const ADMITTED: &str = r#"{"by":"x","at":"2026-01-01T00:00:00Z"}"#;
const OPERATOR: &str = r#"{"operator":true,"by":"x","at":"2026-01-01T00:00:00Z"}"#;
const ADAS: &str = r#"{"users":{"ada":{"by":"x","at":"2026-01-01T00:00:00Z"}}}"#;

fn cluster() -> Snapshot {
    snapshot(&[
        ("apps/a", APP),
        ("access/a", ADAS),
        ("apps/b", APP),
        ("identities/ada", ADMITTED),
        ("identities/eve", ADMITTED),
        ("identities/ops", OPERATOR),
        ("identities/pm:h1", ADMITTED),
        ("identities/proxy:p1", ADMITTED),
        ("identities/converger:c1", ADMITTED),
        ("identities/monitor:m1", ADMITTED),
        ("identities/rm:r2", ADMITTED),
    ])
}

#[test]
fn each_caller_may_what_is_its_own() {
    let there = cluster();
    let access = there.apps[&"a".parse().expect("valid")].access.as_ref().map(|access| &access.value);
    let acts = [Act::Register, Act::App, Act::Slug, Act::Admit, Act::Metrics, Act::Directory];
    for (who, wanted) in [
        (Caller::Anyone, [true; 6]),
        (Caller::Unknown, [false; 6]),
        (caller("nobody"), [false; 6]),
        (caller("pm:h9"), [false; 6]),
        (caller("ada"), [true, true, false, false, true, true]),
        (caller("eve"), [true, false, false, false, true, true]),
        (caller("ops"), [true, true, false, true, true, true]),
        (caller("pm:h1"), [false, false, true, false, true, false]),
        (caller("proxy:p1"), [false, false, false, false, true, true]),
        (caller("converger:c1"), [false, false, false, false, true, true]),
        (caller("monitor:m1"), [false, false, false, false, true, true]),
        (caller("etcd:e1"), [false; 6]),
        (caller("rm:r1"), [true; 6]),
    ] {
        let admission = match &who {
            Caller::Known(name) => there.identities.get(name).map(|admission| &admission.value),
            _ => None,
        };
        for (act, wanted) in acts.iter().zip(wanted) {
            assert_eq!(may(&who, *act, admission, access), wanted, "{who} {act:?}");
        }
    }
}

fn rows() -> Rows {
    let there = cluster();
    let people = |access: &Access| access.users.keys().cloned().collect();
    Rows {
        apps: there
            .apps
            .iter()
            .map(|(app, view)| (app.clone(), view.access.as_deref().map(people).unwrap_or_default()))
            .collect(),
        identities: there.identities.iter().map(|(who, row)| (who.clone(), row.operator)).collect(),
    }
}

/// Reports whether a user may write a key, by etcd's rules.
fn writes(users: &Users, who: &str, key: &str) -> bool {
    let Some(roles) = users.users.get(who) else { return false };
    roles.iter().any(|role| {
        role == ROOT
            || users.roles.get(role).is_some_and(|rights| {
                rights.iter().any(|right| {
                    right.write && if right.prefix { key.starts_with(&right.key) } else { key == right.key }
                })
            })
    })
}

#[test]
fn each_key_is_written_by_whom_the_schema_names() {
    let users = wanted("/p", &rows(), &"rm:r1".parse().expect("valid"));
    let of = |key: &str| -> Vec<&str> {
        let all =
            ["ada", "eve", "ops", "pm:h1", "proxy:p1", "converger:c1", "monitor:m1", "rm:r1", "rm:r2", "x"];
        all.into_iter().filter(|who| writes(&users, who, key)).collect()
    };
    let rms = |others: &[&'static str]| -> Vec<&'static str> { [others, &["rm:r1", "rm:r2"]].concat() };
    for (key, others) in [
        ("/p/schema", &[][..]),
        ("/p/apps/a", &["ops", "converger:c1"]),
        ("/p/apps/a/formation/web", &["ada", "ops", "converger:c1"]),
        ("/p/apps/a/head", &["ada", "ops", "converger:c1"]),
        ("/p/apps/a/headless", &["ops", "converger:c1"]),
        ("/p/apps/a/revs/1", &["ops", "converger:c1"]),
        ("/p/apps/a/instances/1", &["ops", "converger:c1"]),
        ("/p/apps/b/formation/web", &["ops", "converger:c1"]),
        ("/p/apps/aa/formation/web", &["ops", "converger:c1"]),
        ("/p/hosts/h1", &["ops", "pm:h1"]),
        ("/p/hosts/h2", &["ops"]),
        ("/p/status/h1/1", &["ops", "pm:h1", "converger:c1"]),
        ("/p/status/h2/1", &["ops", "converger:c1"]),
        ("/p/assigned/h1/1", &["ops", "converger:c1"]),
        ("/p/sealed/h1/a/e1", &["ops", "converger:c1"]),
        ("/p/serving/h1/a/1", &["ops", "converger:c1"]),
        ("/p/archives/h1", &["ops", "pm:h1"]),
        ("/p/archives/h2", &["ops"]),
        ("/p/apps/a/envs/e1", &["ada", "ops", "converger:c1"]),
        ("/p/wraps/a/e1", &["ada", "ops"]),
        ("/p/wraps/aa/e1", &["ops"]),
        ("/p/asks/r1", &["ops"]),
        ("/p.private/wraps/a/e1", &["ada"]),
        ("/p.private/wraps/aa/e1", &[]),
        ("/p.private/wrapping/h1/a/e1/h2", &["pm:h1", "converger:c1"]),
        ("/p.private/wrapping/h2/a/e1/h1", &["converger:c1"]),
        ("/p.private/asks/r1", &[]),
        ("/p/proxies/p1", &["ops", "proxy:p1"]),
        ("/p/proxies/p2", &["ops"]),
        ("/p/hostmeta/h1", &["ops"]),
        ("/p/unfreeze", &["ops", "converger:c1"]),
        ("/p/audit/ada/1", &["ada"]),
        ("/p/audit/rm:r1/1", &[]),
        ("/p/access/a", &[]),
        ("/p/identities/eve", &[]),
        ("/p/rms/r1", &["ops"]),
        ("/p/counters/port", &["ops"]),
        ("/p/ports/8501", &["ops"]),
        ("/p/counters/instance", &["ops", "converger:c1"]),
        ("/p/election/converger", &["ops", "converger:c1"]),
        ("/p/stats/2026-11-26", &["ops", "converger:c1"]),
        ("/p/domains/a.example.org", &["ops"]),
        ("/p/keys/ada", &[]),
        ("/other/apps/a", &[]),
    ] {
        assert_eq!(of(key), rms(others), "{key}");
    }
}

/// The rights of each role in the coordinators of all versions; `*` ends a range.
const ROLES: &[(&str, &str)] = &[
    (
        "/p:app:a",
        "write /p.private/wraps/a/* write /p/apps/a/envs/* write /p/apps/a/formation/* write /p/apps/a/head write /p/apps/a/pause \
         write /p/apps/a/procs/* write /p/apps/a/releases/* write /p/apps/a/trial write /p/wraps/a/*",
    ),
    (
        "/p:app:b",
        "write /p.private/wraps/b/* write /p/apps/b/envs/* write /p/apps/b/formation/* write /p/apps/b/head write /p/apps/b/pause \
         write /p/apps/b/procs/* write /p/apps/b/releases/* write /p/apps/b/trial write /p/wraps/b/*",
    ),
    ("/p:audit:ada", "write /p/audit/ada/*"),
    ("/p:audit:eve", "write /p/audit/eve/*"),
    ("/p:audit:ops", "write /p/audit/ops/*"),
    (
        "/p:converger",
        "read /p.private/* write /p.private/wrapping/* write /p/apps/* write /p/assigned/* write /p/counters/instance write /p/election/* write /p/history/* \
         write /p/sealed/* write /p/serving/* write /p/stats/* write /p/status/* write /p/unfreeze",
    ),
    (
        "/p:operator",
        "write /p/apps/* write /p/archives/* write /p/asks/* write /p/assigned/* write /p/counters/instance write /p/counters/port \
         write /p/domains/* write /p/election/converger write /p/history/* write /p/hostmeta/* write /p/hosts/* \
         write /p/ports/* write /p/proxies/* write /p/repos/* write /p/rms/* write /p/sealed/* write /p/serving/* write /p/stats/* write /p/status/* \
         write /p/stored/* write /p/turns/* write /p/unfreeze write /p/wraps/*",
    ),
    (
        "/p:pm:h1",
        "write /p.private/wrapping/h1/* read /p/access/* write /p/archives/h1 read /p/assigned/h1/* write /p/hosts/h1 read /p/identities/* \
         read /p/rms/* read /p/schema read /p/sealed/h1/* read /p/serving/h1/* write /p/status/h1/*",
    ),
    ("/p:proxy:p1", "write /p/proxies/p1"),
    ("/p:reader", "read /p/*"),
];

/// The roles of each user of those coordinators.
const USERS: &[(&str, &str)] = &[
    ("ada", "/p:app:a /p:audit:ada /p:reader"),
    ("converger:c1", "/p:converger /p:reader"),
    ("eve", "/p:audit:eve /p:reader"),
    ("monitor:m1", ""),
    ("ops", "/p:audit:ops /p:operator /p:reader"),
    ("pm:h1", "/p:pm:h1"),
    ("proxy:p1", "/p:proxy:p1 /p:reader"),
    ("rm:r1", "root"),
    ("rm:r2", "root"),
    ("root", "root"),
];

#[test]
fn roles_and_their_rights_are_what_they_ever_were() {
    let users = wanted("/p", &rows(), &"rm:r1".parse().expect("valid"));
    let right = |right: &Permission| {
        let (may, end) = (if right.write { "write" } else { "read" }, if right.prefix { "*" } else { "" });
        format!("{may} {}{end}", right.key)
    };
    let roles: BTreeMap<&str, String> = users
        .roles
        .iter()
        .map(|(role, rights)| (role.as_str(), rights.iter().map(right).collect::<Vec<_>>().join(" ")))
        .collect();
    let wanted = ROLES.iter().map(|(role, rights)| (*role, (*rights).to_owned())).collect();
    assert_eq!(roles, wanted);
    let has: BTreeMap<&str, String> = users
        .users
        .iter()
        .map(|(user, roles)| (user.as_str(), roles.iter().map(String::as_str).collect::<Vec<_>>().join(" ")))
        .collect();
    assert_eq!(has, USERS.iter().map(|(user, roles)| (*user, (*roles).to_owned())).collect());
}

#[test]
fn a_host_reads_its_own_work_alone() {
    let users = wanted("/p", &rows(), &"rm:r1".parse().expect("valid"));
    let rights = &users.roles["/p:pm:h1"];
    let reads = |key: &str| {
        rights.iter().any(|right| if right.prefix { key.starts_with(&right.key) } else { key == right.key })
    };
    assert_eq!(users.users["pm:h1"], ["/p:pm:h1".to_owned()].into());
    assert!(reads("/p.private/wrapping/h1/a/e1/h2") && !reads("/p.private/wrapping/h2/a/e1/h1"));
    assert!(reads("/p/assigned/h1/7") && reads("/p/schema") && reads("/p/rms/r1"));
    for key in ["/p/assigned/h2/7", "/p/assigned/h10/7", "/p/apps/a/envs/e1", "/p/hosts/h2", "/p/status/h2/7"]
    {
        assert!(!reads(key), "{key}");
    }
}

#[test]
fn private_rows_are_read_by_rms_convergers_and_their_own_writers_alone() {
    let users = wanted("/p", &rows(), &"rm:r1".parse().expect("valid"));
    let reads = |who: &str, key: &str| {
        users.users[who].iter().any(|role| {
            let rights = users.roles.get(role).into_iter().flatten();
            role == ROOT
                || rights
                    .clone()
                    .any(|right| if right.prefix { key.starts_with(&right.key) } else { key == right.key })
        })
    };
    for (key, wanted) in [
        ("/p.private/wraps/a/e1", &["ada", "converger:c1", "rm:r1", "rm:r2", "root"][..]),
        ("/p.private/wraps/b/e1", &["converger:c1", "rm:r1", "rm:r2", "root"]),
        ("/p.private/wrapping/h1/a/e1/h2", &["converger:c1", "pm:h1", "rm:r1", "rm:r2", "root"]),
        ("/p.private/asks/r1", &["converger:c1", "rm:r1", "rm:r2", "root"]),
    ] {
        let readers: Vec<&str> =
            users.users.keys().map(String::as_str).filter(|who| reads(who, key)).collect();
        assert_eq!(readers, wanted, "{key}");
    }
}

/// Applies a step as etcd does, with etcd's refusals.
fn apply(state: &mut Users, op: AuthOp) {
    match op {
        AuthOp::AddRole(role) => assert!(state.roles.insert(role, BTreeSet::new()).is_none()),
        AuthOp::GrantPermission(role, right) => {
            let rights = state.roles.get_mut(&role).expect("the role is there");
            // A range has one right.
            rights.retain(|other| (&other.key, other.prefix) != (&right.key, right.prefix));
            rights.insert(right);
        }
        AuthOp::RevokePermission(role, right) => {
            let rights = state.roles.get_mut(&role).expect("the role is there");
            let before = rights.len();
            rights.retain(|other| (&other.key, other.prefix) != (&right.key, right.prefix));
            assert_eq!(rights.len() + 1, before);
        }
        AuthOp::AddUser(user) => assert!(state.users.insert(user, BTreeSet::new()).is_none()),
        AuthOp::GrantRole { user, role } => {
            assert!(role == ROOT || state.roles.contains_key(&role), "there is no role {role}");
            assert!(state.users.get_mut(&user).expect("the user is there").insert(role));
        }
        AuthOp::RevokeRole { user, role } => {
            assert!(state.users.get_mut(&user).expect("the user is there").remove(&role));
        }
        AuthOp::DeleteUser(user) => drop(state.users.remove(&user).expect("the user is there")),
        AuthOp::DeleteRole(role) => {
            state.roles.remove(&role).expect("the role is there");
            // etcd itself takes the role from its users.
            for roles in state.users.values_mut() {
                roles.remove(&role);
            }
        }
    }
}

fn rights() -> impl Strategy<Value = BTreeSet<Permission>> {
    // A range has one right, as in etcd.
    let right = prop::option::of(any::<bool>());
    prop::collection::vec(right, 4).prop_map(|rights| {
        let right = |(at, write): (usize, Option<bool>)| {
            Some(Permission { key: format!("/p/{}", at / 2), prefix: at % 2 == 0, write: write? })
        };
        rights.into_iter().enumerate().filter_map(right).collect()
    })
}

fn users() -> impl Strategy<Value = Users> {
    let roles = prop::collection::btree_map("/p:[abc]", rights(), 0..3);
    (roles, prop::collection::btree_map("(rm:)?[abc]", prop::collection::btree_set("/p:[abc]", 0..3), 0..4))
        .prop_map(|(roles, mut users)| {
            users.values_mut().for_each(|has| has.retain(|role| roles.contains_key(role)));
            Users { roles, users }
        })
}

proptest! {
    #[test]
    fn whatever_is_found_becomes_what_is_wanted(found in users(), wanted in users()) {
        let mut state = found.clone();
        // Other programs' users and roles, which stay.
        state.roles.insert("other".into(), BTreeSet::new());
        state.users.insert("z".into(), ["other".to_owned()].into());
        for op in plan("/p", &wanted, &state) {
            apply(&mut state, op);
        }
        prop_assert_eq!(plan("/p", &wanted, &state), vec![]);
        for (user, roles) in &wanted.users {
            prop_assert_eq!(&state.users[user], roles);
        }
        for (role, rights) in &wanted.roles {
            prop_assert_eq!(&state.roles[role], rights);
        }
        prop_assert!(state.roles.contains_key("other") && state.users["z"].contains("other"));
        for (user, roles) in &state.users {
            prop_assert!(wanted.users.contains_key(user) || roles.iter().all(|role| !role.starts_with("/p:")));
        }
    }

    #[test]
    fn nobody_has_more_on_the_way_than_before_or_after(found in users(), wanted in users()) {
        let may = |state: &Users, user: &str, right: &Permission| state.users.get(user).is_some_and(|roles| {
            roles.iter().any(|role| state.roles.get(role).is_some_and(|rights| rights.contains(right)))
        });
        let mut state = found.clone();
        for op in plan("/p", &wanted, &found) {
            apply(&mut state, op);
            for (user, roles) in &state.users {
                for right in roles.iter().filter_map(|role| state.roles.get(role)).flatten() {
                    prop_assert!(may(&found, user, right) || may(&wanted, user, right), "{} {:?}", user, right);
                }
            }
        }
    }
}
