//! Small clusters for tests of rules: an image built from rows.

use serde_json::{Value, json};

use crate::{
    mirror::Image,
    names::{HostName, InstanceId},
    snapshot::Snapshot,
    store::{Entry, Revision},
};

/// A cluster's image, and the revision of its last row.
#[derive(Default)]
pub struct Cluster {
    /// The image.
    pub image: Snapshot,
    revision: Revision,
}

/// Returns the id of a rev.
pub fn rev() -> String {
    "1".repeat(40)
}

impl Cluster {
    /// Writes a row.
    pub fn put(&mut self, key: &str, value: &Value) -> &mut Self {
        self.revision += 1;
        let revision = self.revision;
        let (create_revision, mod_revision) = (revision, revision);
        let value = value.to_string().into();
        self.image.put(&Entry { key: key.to_owned(), value, create_revision, mod_revision, lease: None });
        assert!(self.image.unreadable.is_empty(), "{:?}", self.image.unreadable);
        self
    }

    /// Registers a host.
    pub fn host(&mut self, name: &str, zone: &str, slots: u32, memory_mib: u64) -> &mut Self {
        let row = json!({
            "address": "10.0.0.1", "url": "http://10.0.0.1:1", "zone": zone, "version": "1", "isolation": "none",
            "capacity": { "memory_bytes": memory_mib << 20, "instances": slots }, "boot_id": "b", "token": "t",
            "since": "2026-01-01T00:00:00Z",
        });
        self.put(&format!("hosts/{name}"), &row)
    }

    /// Sets an operator's marks on a host: `{"cordoned":true}`.
    pub fn mark(&mut self, name: &str, meta: &Value) -> &mut Self {
        self.put(&format!("hostmeta/{name}"), meta)
    }

    /// Registers an app with a proc `web` and v1 as head.
    pub fn app(&mut self, name: &str, count: u32) -> &mut Self {
        let at = "2026-01-01T00:00:00Z";
        let slug = json!({ "sha256": "0".repeat(64), "size_bytes": 1 });
        self.put(&format!("apps/{name}"), &json!({ "owner": "ada", "created_at": at, "token": "t" }));
        let row = json!({ "slug": slug, "procs": { "web": "run" }, "kind": "plain", "by": "ada", "at": at });
        self.put(&format!("apps/{name}/revs/{}", rev()), &row);
        let row = json!({ "rev": rev(), "env": "e0", "by": "ada", "at": at, "reason": "", "status": "released", "token": "" });
        self.put(&format!("apps/{name}/releases/v1"), &row);
        self.put(&format!("apps/{name}/head"), &json!({ "release": "v1" }));
        self.put(&format!("apps/{name}/procs/web"), &json!({ "port": 8501 }));
        self.put(&format!("apps/{name}/formation/web"), &json!({ "count": count }))
    }

    /// Places an instance of an app's `web` on a host, where it runs.
    pub fn runs(&mut self, app: &str, id: u64, host: &str, index: u32) -> &mut Self {
        let at = "2026-01-01T00:00:00Z";
        let slug = json!({ "sha256": "0".repeat(64), "size_bytes": 1 });
        let row = json!({ "host": host, "proc": "web", "release": "v1", "rev": rev(), "index": index, "placed_at": at, "reason": "" });
        self.put(&format!("apps/{app}/instances/{id}"), &row);
        let row = json!({ "desired": "run", "app": app, "proc": "web", "release": "v1", "rev": rev(), "env": "e0",
            "slug": slug, "command": "run", "index": index });
        self.put(&format!("assigned/{host}/{id}"), &row);
        self.put(&format!("status/{host}/{id}"), &json!({ "state": "running", "since": at }))
    }

    /// Returns a host's name.
    pub fn host_name(name: &str) -> HostName {
        name.parse().expect("a valid name")
    }

    /// Sets the state that a host reports of an instance.
    pub fn reports(&mut self, host: &str, id: u64, state: &str) -> &mut Self {
        let id = InstanceId(id);
        self.put(&format!("status/{host}/{id}"), &json!({ "state": state, "since": "2026-01-01T00:00:00Z" }))
    }
}
