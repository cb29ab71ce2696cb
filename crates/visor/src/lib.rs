//! The centre of Bazooka: the schema, every key, every transition and the watch over the coordinator.
//!
//! No other crate opens a connection to etcd. The layers, each using only those above it in this list
//! (`tests/layers.rs` holds it):
//!
//! ```text
//! clock        the wall clock, as it is passed in
//! pause        the pause between attempts that fail
//! deadlines    how long each part waits for another, and the order of these times
//! terminal     text from outside, made safe for a terminal
//! names        words that can't be wrong             AppName, RevId, InstanceId, Link, ...
//! vars         config vars' names and sizes
//! identity     who a certificate names, and TLS       Identity, Credentials, Caller
//! seal         how config vars are sealed and opened
//! store        range, transaction, watch, lease      etcd | model (in memory)
//! schema       what each key holds
//! settings     how a proc is run: each setting declared once
//! keys         where each key is
//! snapshot     the typed image that planners read
//! links        which services an app's instances are told of
//! access       who may do what, as etcd's roles
//! lease        a lease that is kept alive
//! mirror       list + watch, kept true for ever
//! visor        a handle: typed reads, guarded commits
//! migrate      from one version of the schema to the next
//! stats        what each day brought
//! transitions  each change of state, as one guarded transaction
//! wrapping     who can open the envs, kept so by each rm
//! rules        what is wanted, what fails, and where there is room; each rule once
//! progress     how far a service is from what is wanted
//! capacity     what is taken of a host, and left of a cluster
//! check        whether the rows fit together
//! recover      from a backup to what runs
//! testing      what the tests of every crate share
//! ```

pub mod access;
pub mod capacity;
pub mod check;
pub mod clock;
pub mod deadlines;
pub mod identity;
pub mod keys;
pub mod lease;
pub mod links;
pub mod migrate;
pub mod mirror;
pub mod names;
pub mod pause;
pub mod progress;
pub mod recover;
pub mod rules;
pub mod schema;
pub mod seal;
pub mod settings;
pub mod snapshot;
pub mod stats;
pub mod store;
pub mod terminal;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transitions;
pub mod vars;
pub mod visor;
pub mod wrapping;
