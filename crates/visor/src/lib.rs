//! The centre of Bazooka: the schema, every key, every transition and the watch over the coordinator.
//!
//! Only this crate opens connections to etcd. Each layer below uses only layers above it in this list;
//! `tests/layers.rs` checks that:
//!
//! ```text
//! planted      faults that the simulation plants; no program contains one
//! clock        the wall clock, as it is passed in
//! pause        the pause between attempts that fail
//! deadlines    how long each part waits for another, and the order of these times
//! terminal     text from outside, made safe for a terminal
//! names        names that are valid once parsed      AppName, RevId, InstanceId, Link, ...
//! vars         names and sizes of config vars
//! identity     whom a certificate names, and TLS     Identity, Credentials, Caller
//! seal         sealing and opening config vars
//! store        range, transaction, watch, lease      etcd | model (in memory)
//! schema       the row that each key holds
//! settings     how a proc is run: each setting declared once
//! bounds       the most that a row may ask of those who obey it
//! rows         each row declared once: key, value, writers, end
//! keys         the spelling of each key
//! snapshot     the typed image that planners read
//! ports        which service has which port, and which ports are free
//! quota        the bounds of what an app keeps in the coordinator
//! links        the addresses of linked services that an app's instances get
//! access       who may do what, as etcd's roles
//! lease        a lease that is kept alive
//! mirror       list and watch: an image that stays true
//! visor        a handle: typed reads, guarded commits
//! migrate      from one version of the schema to the next
//! stats        the figures of each day
//! transitions  each change of state, as one guarded transaction
//! wrapping     an rm's loop that wraps the keys of envs for all who may open them
//! port_keeping an rm's loop that keeps the rows of service ports
//! rules        what is wanted, what fails, and where there is room; each rule once
//! progress     how far a service is from what is wanted
//! capacity     what is taken of a host, and left of a cluster
//! check        the check that the rows fit together
//! recover      from a backup to what runs
//! testing      what the tests of every crate share
//! ```

pub mod access;
pub mod bounds;
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
pub mod planted;
pub mod port_keeping;
pub mod ports;
pub mod progress;
pub mod quota;
pub mod recover;
pub mod rows;
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
