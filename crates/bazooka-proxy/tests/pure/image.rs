//! Snapshots made of the rows that a coordinator would hold.

use bazooka_proxy::{config::Settings, routes::ServiceId};
use serde_json::json;
use visor::{mirror::Image, names::InstanceId, snapshot::Snapshot, store::Entry};

/// A row as it is stored.
pub fn entry(key: &str, value: &str) -> Entry {
    Entry {
        key: key.to_owned(),
        value: value.to_owned().into(),
        create_revision: 1,
        mod_revision: 1,
        lease: None,
    }
}

/// A cluster's rows, written one by one.
#[derive(Default)]
pub struct Rows(pub Snapshot);

impl Rows {
    pub fn put(mut self, key: &str, value: &str) -> Self {
        self.0.put(&entry(key, value));
        self
    }

    pub fn proc(self, service: &str, port: u16) -> Self {
        let (app, proc) = service.split_once('/').expect("app/proc");
        self.put(&format!("apps/{app}/procs/{proc}"), &json!({ "port": port }).to_string())
    }

    pub fn assigned(self, id: u64, service: &str, desired: &str) -> Self {
        let (app, proc) = service.split_once('/').expect("app/proc");
        let value = json!({
            "desired": desired, "app": app, "proc": proc, "release": "v1", "rev": "0".repeat(40), "env": "e0",
            "slug": { "sha256": "0".repeat(64), "size_bytes": 1 }, "command": "true", "index": 0,
        });
        self.put(&format!("assigned/host1/{id}"), &value.to_string())
    }

    /// An instance that runs another release than v1.
    pub fn running_of(self, id: u64, service: &str, release: &str, address: &str) -> Self {
        let mut rows = self.running(id, service, address);
        let host = rows.0.hosts.values_mut().find(|host| host.assigned.contains_key(&InstanceId(id)));
        let assigned = host.and_then(|host| host.assigned.get_mut(&InstanceId(id)));
        assigned.expect("just assigned").value.release = release.parse().expect("a release");
        rows
    }

    /// v2 runs beside v1, with a share of the traffic if one is set.
    pub fn shared(self, service: &str, share: Option<u32>) -> Self {
        let (app, proc) = service.split_once('/').expect("app/proc");
        let weights = share.map(|share| json!({ "v2": share })).unwrap_or(json!({}));
        let value = json!({ "count": 1, "beside": { "v2": 1 }, "weights": weights });
        self.put(&format!("apps/{app}/formation/{proc}"), &value.to_string())
    }

    pub fn status(self, id: u64, state: &str, address: &str) -> Self {
        let address: std::net::SocketAddr = address.parse().expect("an address");
        let value = json!({
            "state": state, "since": "2026-01-01T00:00:00Z", "ip": address.ip(), "port": address.port(),
        });
        self.put(&format!("status/host1/{id}"), &value.to_string())
    }

    /// An instance that is meant to run, and does.
    pub fn running(self, id: u64, service: &str, address: &str) -> Self {
        self.assigned(id, service, "run").status(id, "running", address)
    }

    /// A host that is there, in a zone.
    pub fn host(self, name: &str, zone: &str) -> Self {
        let value = json!({
            "address": "10.0.0.1", "url": "http://10.0.0.1:9000", "zone": zone, "version": "0.1.0",
            "capacity": { "instances": 100, "memory_bytes": 1 << 30, "cpu_millis": 1000 }, "isolation": "none",
            "boot_id": "b", "since": "2026-01-01T00:00:00Z", "token": "t",
        });
        self.put(&format!("hosts/{name}"), &value.to_string())
    }

    /// The same instance on another host.
    pub fn moved(mut self, id: u64, to: &str) -> Self {
        let id = InstanceId(id);
        let host =
            self.0.hosts.values_mut().find(|host| host.assigned.contains_key(&id)).expect("it is there");
        let (assigned, status) = (host.assigned.remove(&id), host.status.remove(&id));
        let host = self.0.hosts.entry(to.parse().expect("a valid name")).or_default();
        host.assigned.extend(assigned.map(|row| (id, row)));
        host.status.extend(status.map(|row| (id, row)));
        self
    }

    /// A proxy in a zone.
    pub fn proxy(self, name: &str, zone: &str) -> Self {
        let value = json!({
            "url": "http://10.0.0.9:1", "public": "10.0.0.9:8080", "domain": "localhost", "version": "0.1.0",
            "zone": zone, "applied": 1,
        });
        self.put(&format!("proxies/{name}"), &value.to_string())
    }

    pub fn domain(self, domain: &str, app: &str) -> Self {
        self.put(&format!("domains/{domain}"), &json!({ "app": app }).to_string())
    }
}

pub fn service(name: &str) -> ServiceId {
    let (app, proc) = name.split_once('/').expect("app/proc");
    ServiceId { app: app.parse().expect("a valid name"), proc: proc.parse().expect("a valid name") }
}

pub fn settings() -> Settings {
    Settings {
        public: Some("0.0.0.0:8080".parse().expect("an address")),
        git: None,
        git_tls: None,
        bind: "0.0.0.0".parse().expect("an address"),
        domain: "localhost".parse().expect("a valid name"),
        folder: "/var/lib/bazooka-proxy".into(),
        run_as: None,
        exporter: true,
        lua: true,
    }
}
