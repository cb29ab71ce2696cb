//! Many machines, each part of them broken while requests flow: what must go on, and how soon all is well again.

mod coordinator;
mod hosts;
mod pm;
mod proxies;
mod rollouts;
mod upgrades;
mod zones;
