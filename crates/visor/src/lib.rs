//! The centre of Bazooka: the schema, every key, every transition and the watch over the coordinator.
//!
//! No other crate knows a key or opens a connection to etcd. The layers, each on the one above it:
//!
//! ```text
//! clock        the wall clock, as it is passed in
//! store        range, transaction, watch, lease      etcd | model (in memory)
//! identity     who a certificate names, and TLS       Identity, Credentials, Caller
//! access       who may do what, and etcd's roles
//! names        words that can't be wrong             AppName, RevId, InstanceId, ...
//! schema       what each key holds
//! links        which services an app's instances are told of
//! keys         where each key is
//! migrate      from one version of the schema to the next, and who may read it
//! mirror       list + watch, kept true for ever
//! snapshot     the typed image that planners read
//! visor        a handle: typed reads, guarded commits
//! transitions  each change of state, as one guarded transaction
//! progress     how far a service is from what is wanted
//! capacity     what is taken of a host, and left of a cluster
//! recover      from a backup to what runs
//! check        whether the rows fit together
//! stats        what each day brought
//! ```

pub mod access;
pub mod capacity;
pub mod check;
pub mod clock;
pub mod daemon;
pub mod exposition;
pub mod identity;
pub mod keys;
pub mod lease;
pub mod links;
pub mod migrate;
pub mod mirror;
pub mod names;
pub mod progress;
pub mod recover;
pub mod schema;
pub mod seal;
pub mod snapshot;
pub mod stats;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transitions;
pub mod visor;
pub mod wrapping;
