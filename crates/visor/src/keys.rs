//! The keys: the spelling of every key of the coordinator, written and parsed only here.
//!
//! Each key has named writers, most of them one, so that etcd's roles can restrict an identity to its prefixes.
//!
//! ```text
//! schema                    the first part to start        apps/A/releases/N    bazooka or rm; converger marks
//! counters/instance         converger                      apps/A/head          rm or converger
//! counters/port             rm                             apps/A/trial         rm (leased), bazooka; converger ends
//! apps/A                    rm                             apps/A/formation/P   bazooka
//! apps/A/revs/R             rm                             apps/A/instances/ID  converger
//! apps/A/procs/P            rm registers, bazooka sets     apps/A/pending/P     converger
//! apps/A/envs/E             bazooka; rm seals a plain one  apps/A/pause         bazooka
//! wraps/A/E                 bazooka, rm                    sealed/H/A/E         converger
//! repos/A domains/D         rm
//! hosts/H (leased)          pm of H                        proxies/X (leased)   the proxy
//! hostmeta/H                operator                       rms/X (leased)       the rm
//! unfreeze                  operator; converger ends it
//! assigned/H/ID             converger                      election/converger   converger (leased)
//! status/H/ID               pm of H; converger once lost   history/A/P/ID       converger
//! asks/X (leased)           the rm; developers read it
//! turns/A (leased)          rm, while it takes a push      stored/A             rm, within its turn
//! access/A                  rm                             identities/NAME      rm
//! keys/USER                 rm                             audit/NAME/ID        NAME; rm deletes old ones
//! stats/DAY                 converger
//! ```

use std::{fmt, str::FromStr};

use crate::{
    identity::Identity,
    names::{
        AppName, AuditId, Day, Domain, EnvRef, HostName, InstanceId, ProcName, ReleaseId, RevId, UserName,
    },
    store::Keys,
};

/// A key of the schema.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each variant is named for the key that the file's head describes")]
pub enum Key {
    Schema,
    InstanceCounter,
    PortCounter,
    App(AppName),
    Rev(AppName, RevId),
    Proc(AppName, ProcName),
    Env(AppName, EnvRef),
    Wraps(AppName, EnvRef),
    Release(AppName, ReleaseId),
    Head(AppName),
    Trial(AppName),
    Pause(AppName),
    Formation(AppName, ProcName),
    Instance(AppName, InstanceId),
    Pending(AppName, ProcName),
    Domain(Domain),
    Repo(AppName),
    Turn(AppName),
    Stored(AppName),
    Host(HostName),
    HostMeta(HostName),
    Assigned(HostName, InstanceId),
    Status(HostName, InstanceId),
    Handed(HostName, AppName, EnvRef),
    Proxy(HostName),
    Rm(HostName),
    Ask(HostName),
    Leader,
    Unfreeze,
    Ended(AppName, ProcName, InstanceId),
    Access(AppName),
    Admission(Identity),
    SshKeys(UserName),
    Audit(Identity, AuditId),
    Day(Day),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Schema => f.write_str("schema"),
            Key::InstanceCounter => f.write_str("counters/instance"),
            Key::PortCounter => f.write_str("counters/port"),
            Key::App(a) => write!(f, "apps/{a}"),
            Key::Rev(a, r) => write!(f, "apps/{a}/revs/{r}"),
            Key::Proc(a, p) => write!(f, "apps/{a}/procs/{p}"),
            Key::Env(a, e) => write!(f, "apps/{a}/envs/{e}"),
            Key::Wraps(a, e) => write!(f, "wraps/{a}/{e}"),
            Key::Release(a, n) => write!(f, "apps/{a}/releases/{n}"),
            Key::Head(a) => write!(f, "apps/{a}/head"),
            Key::Trial(a) => write!(f, "apps/{a}/trial"),
            Key::Pause(a) => write!(f, "apps/{a}/pause"),
            Key::Formation(a, p) => write!(f, "apps/{a}/formation/{p}"),
            Key::Instance(a, id) => write!(f, "apps/{a}/instances/{id}"),
            Key::Pending(a, p) => write!(f, "apps/{a}/pending/{p}"),
            Key::Domain(d) => write!(f, "domains/{d}"),
            Key::Repo(a) => write!(f, "repos/{a}"),
            Key::Turn(a) => write!(f, "turns/{a}"),
            Key::Stored(a) => write!(f, "stored/{a}"),
            Key::Host(h) => write!(f, "hosts/{h}"),
            Key::HostMeta(h) => write!(f, "hostmeta/{h}"),
            Key::Assigned(h, id) => write!(f, "assigned/{h}/{id}"),
            Key::Status(h, id) => write!(f, "status/{h}/{id}"),
            Key::Handed(h, a, e) => write!(f, "sealed/{h}/{a}/{e}"),
            Key::Proxy(x) => write!(f, "proxies/{x}"),
            Key::Rm(x) => write!(f, "rms/{x}"),
            Key::Ask(x) => write!(f, "asks/{x}"),
            Key::Leader => f.write_str("election/converger"),
            Key::Unfreeze => f.write_str("unfreeze"),
            Key::Ended(a, p, id) => write!(f, "history/{a}/{p}/{id}"),
            Key::Access(a) => write!(f, "access/{a}"),
            Key::Audit(who, id) => write!(f, "audit/{who}/{id}"),
            Key::Day(day) => write!(f, "stats/{day}"),
            Key::SshKeys(user) => write!(f, "keys/{user}"),
            Key::Admission(who) => write!(f, "identities/{who}"),
        }
    }
}

/// The error for a key that this version does not know, or that contains an invalid name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no key of this schema: {0:?}")]
pub struct UnknownKey(pub String);

impl FromStr for Key {
    type Err = UnknownKey;

    fn from_str(s: &str) -> Result<Self, UnknownKey> {
        fn word<T: FromStr>(s: &str) -> Option<T> {
            s.parse().ok()
        }
        let parts: Vec<&str> = s.split('/').collect();
        let key = match parts[..] {
            ["schema"] => Some(Key::Schema),
            ["counters", "instance"] => Some(Key::InstanceCounter),
            ["counters", "port"] => Some(Key::PortCounter),
            ["apps", a] => word(a).map(Key::App),
            ["apps", a, "head"] => word(a).map(Key::Head),
            ["apps", a, "trial"] => word(a).map(Key::Trial),
            ["apps", a, "pause"] => word(a).map(Key::Pause),
            ["apps", a, kind, name] => word::<AppName>(a).and_then(|a| match kind {
                "revs" => word(name).map(|r| Key::Rev(a, r)),
                "procs" => word(name).map(|p| Key::Proc(a, p)),
                "envs" => word(name).map(|e| Key::Env(a, e)),
                "releases" => word(name).map(|n| Key::Release(a, n)),
                "formation" => word(name).map(|p| Key::Formation(a, p)),
                "instances" => word(name).map(|id| Key::Instance(a, id)),
                "pending" => word(name).map(|p| Key::Pending(a, p)),
                _ => None,
            }),
            ["domains", d] => word(d).map(Key::Domain),
            ["repos", a] => word(a).map(Key::Repo),
            ["turns", a] => word(a).map(Key::Turn),
            ["stored", a] => word(a).map(Key::Stored),
            ["hosts", h] => word(h).map(Key::Host),
            ["hostmeta", h] => word(h).map(Key::HostMeta),
            ["assigned", h, id] => word(h).zip(word(id)).map(|(h, id)| Key::Assigned(h, id)),
            ["status", h, id] => word(h).zip(word(id)).map(|(h, id)| Key::Status(h, id)),
            ["wraps", a, e] => word(a).zip(word(e)).map(|(a, e)| Key::Wraps(a, e)),
            ["sealed", h, a, e] => word(h).zip(word(a)).zip(word(e)).map(|((h, a), e)| Key::Handed(h, a, e)),
            ["proxies", x] => word(x).map(Key::Proxy),
            ["rms", x] => word(x).map(Key::Rm),
            ["asks", x] => word(x).map(Key::Ask),
            ["election", "converger"] => Some(Key::Leader),
            ["unfreeze"] => Some(Key::Unfreeze),
            ["history", a, p, id] => {
                word(a).zip(word(p)).zip(word(id)).map(|((a, p), id)| Key::Ended(a, p, id))
            }
            ["access", a] => word(a).map(Key::Access),
            ["audit", who, id] => word(who).zip(word(id)).map(|(who, id)| Key::Audit(who, id)),
            ["keys", user] => word(user).map(Key::SshKeys),
            ["stats", day] => word(day).map(Key::Day),
            ["identities", who] => word(who).map(Key::Admission),
            _ => None,
        };
        key.ok_or_else(|| UnknownKey(s.to_owned()))
    }
}

/// Returns the scope of the whole cluster, for the converger and the proxies.
pub fn everything() -> Vec<Keys> {
    vec![Keys::Prefix(String::new())]
}

/// Returns the scope of the schema row, which names the cluster.
pub fn schema() -> Keys {
    Keys::One(Key::Schema.to_string())
}

/// Returns the scopes of one app and all that belongs to it, except the statuses of its instances.
pub fn app(app: &AppName) -> Vec<Keys> {
    vec![
        Keys::One(Key::App(app.clone()).to_string()),
        app_below(app),
        Keys::One(Key::Repo(app.clone()).to_string()),
    ]
}

/// Returns the scopes of an app's services: what they are and should be.
///
/// Instances are left out, because they may be many more than all the other rows together.
pub fn services_of(app: &AppName) -> Vec<Keys> {
    let below = |kind| Keys::Prefix(format!("apps/{app}/{kind}/"));
    let one = |key: Key| Keys::One(key.to_string());
    vec![
        one(Key::App(app.clone())),
        one(Key::Head(app.clone())),
        below("revs"),
        below("procs"),
        below("releases"),
        below("formation"),
    ]
}

/// Returns the scope of everything below an app's own key.
pub fn app_below(app: &AppName) -> Keys {
    Keys::Prefix(format!("apps/{app}/"))
}

/// Returns the scope of the placements of an app's instances.
pub fn instances_of(app: &AppName) -> Keys {
    Keys::Prefix(format!("apps/{app}/instances/"))
}

/// Returns the scope of an app's procs, with their settings.
pub fn procs_of(app: &AppName) -> Keys {
    Keys::Prefix(format!("apps/{app}/procs/"))
}

/// Returns the scope of an app's instances without a place.
pub fn pending_of(app: &AppName) -> Keys {
    Keys::Prefix(format!("apps/{app}/pending/"))
}

/// Returns the scope of all assignments of all hosts.
pub fn all_assigned() -> Keys {
    Keys::Prefix("assigned/".to_owned())
}

/// Returns the scope of all statuses of all hosts.
pub fn all_statuses() -> Keys {
    Keys::Prefix("status/".to_owned())
}

/// Returns the scope of one host's assignments, which its pm watches.
pub fn assigned_to(host: &HostName) -> Keys {
    Keys::Prefix(format!("assigned/{host}/"))
}

/// Returns the scope of the wraps of an app's envs.
pub fn wraps_of(app: &AppName) -> Keys {
    Keys::Prefix(format!("wraps/{app}/"))
}

/// Returns the scope of the wraps of all envs.
pub fn wraps() -> Keys {
    Keys::Prefix("wraps/".into())
}

/// Returns the scope of one host's copies of envs.
pub fn handed_to(host: &HostName) -> Keys {
    Keys::Prefix(format!("sealed/{host}/"))
}

/// Returns the scope of the statuses that one host has reported.
pub fn status_of(host: &HostName) -> Keys {
    Keys::Prefix(format!("status/{host}/"))
}

/// Returns the scope of the ended instances of one app.
pub fn history_of(app: &AppName) -> Keys {
    Keys::Prefix(format!("history/{app}/"))
}

/// Returns the scope of every app with all that belongs to it.
pub fn apps() -> Keys {
    Keys::Prefix("apps/".into())
}

/// Returns the scope of the state of every repository.
pub fn repos() -> Keys {
    Keys::Prefix("repos/".into())
}

/// Returns the scope of every push that an rm is taking.
pub fn turns() -> Keys {
    Keys::Prefix("turns/".into())
}

/// Returns the scope of the stored state of every repository.
pub fn stored() -> Keys {
    Keys::Prefix("stored/".into())
}

/// Returns the scope of the grants for every app.
pub fn access() -> Keys {
    Keys::Prefix("access/".into())
}

/// Returns the scope of everyone who is admitted to the cluster.
pub fn identities() -> Keys {
    Keys::Prefix("identities/".into())
}

/// Returns the scope of everyone's SSH keys.
pub fn ssh_keys() -> Keys {
    Keys::Prefix("keys/".into())
}

/// Returns the scope of the audit.
pub fn audit() -> Keys {
    Keys::Prefix("audit/".into())
}

/// Returns the scope of the figures of each day.
pub fn days() -> Keys {
    Keys::Prefix("stats/".into())
}

/// Returns the scope of every bazooka-rm that serves.
pub fn rms() -> Keys {
    Keys::Prefix("rms/".into())
}

/// Returns the scope of the secrets with which clients ask each bazooka-rm to open an env.
pub fn asks() -> Keys {
    Keys::Prefix("asks/".into())
}

/// Returns the scope of every proxy that serves.
pub fn proxies() -> Keys {
    Keys::Prefix("proxies/".into())
}

/// Returns the scope of every live host.
pub fn hosts() -> Keys {
    Keys::Prefix("hosts/".into())
}

/// Returns the scope of the operator's marks on every host.
pub fn host_metas() -> Keys {
    Keys::Prefix("hostmeta/".into())
}

/// Returns the scopes of one host and all that belongs to it.
pub fn host(host: &HostName) -> Vec<Keys> {
    vec![
        Keys::One(Key::Host(host.clone()).to_string()),
        Keys::One(Key::HostMeta(host.clone()).to_string()),
        assigned_to(host),
        status_of(host),
    ]
}

/// Returns the prefixes and keys that an operator may write besides its own rows.
///
/// `bazooka check --repair` mends the rows there.
pub fn operator_may_write() -> (Vec<String>, Vec<Key>) {
    let below = ["apps", "wraps", "assigned", "status", "sealed", "history", "stats", "hosts", "proxies"]
        .into_iter()
        .chain(["rms", "asks", "turns", "stored", "repos", "domains"]);
    let prefixes = below.map(|kind| format!("{kind}/")).collect();
    (prefixes, vec![Key::InstanceCounter, Key::PortCounter, Key::Leader])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_as_it_was_written() {
        let a: AppName = "goto-rocket".parse().expect("valid");
        let p: ProcName = "web".parse().expect("valid");
        let h: HostName = "app1.example.org".parse().expect("valid");
        let r: RevId = "16f7cbf0123456789012345678901234567890ab".parse().expect("valid");
        for key in [
            Key::Schema,
            Key::InstanceCounter,
            Key::PortCounter,
            Key::App(a.clone()),
            Key::Rev(a.clone(), r),
            Key::Proc(a.clone(), p.clone()),
            Key::Env(a.clone(), EnvRef(3)),
            Key::Wraps(a.clone(), EnvRef(3)),
            Key::Handed(h.clone(), a.clone(), EnvRef(3)),
            Key::Release(a.clone(), ReleaseId(12)),
            Key::Head(a.clone()),
            Key::Trial(a.clone()),
            Key::Pause(a.clone()),
            Key::Formation(a.clone(), p.clone()),
            Key::Instance(a.clone(), InstanceId(4617216)),
            Key::Pending(a.clone(), p.clone()),
            Key::Domain("a.example.org".parse().expect("valid")),
            Key::Repo(a.clone()),
            Key::Turn(a.clone()),
            Key::Stored(a.clone()),
            Key::Host(h.clone()),
            Key::HostMeta(h.clone()),
            Key::Assigned(h.clone(), InstanceId(1)),
            Key::Status(h.clone(), InstanceId(1)),
            Key::Proxy(h.clone()),
            Key::Rm(h.clone()),
            Key::Ask(h),
            Key::Leader,
            Key::Unfreeze,
            Key::Ended(a.clone(), p, InstanceId(9)),
            Key::Access(a),
            Key::SshKeys("ada".parse().expect("valid")),
            Key::Day("2026-11-26".parse().expect("valid")),
            Key::Audit("rm:r1".parse().expect("valid"), "1795660630615-00ff00ff".parse().expect("valid")),
            Key::Admission("ada".parse().expect("valid")),
            Key::Admission("pm:app1.example.org".parse().expect("valid")),
        ] {
            assert_eq!(key.to_string().parse(), Ok(key));
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
        for key in [
            "",
            "apps",
            "apps/",
            "apps/A",
            "apps/a/b",
            "apps/a/revs/xyz",
            "apps/a/heads",
            "hosts/a/b",
            "new/key",
        ] {
            assert_eq!(key.parse::<Key>(), Err(UnknownKey(key.to_owned())));
        }
    }
}
