//! Real pushes by the real git, over HTTP, to a real bazooka-rm on a real etcd.

mod apps;
mod builds;
mod cut;
mod hostile;
mod languages;
mod node;
mod others;
mod packs;
mod python;
mod refused;
mod releases;
mod rig;
mod s3;
mod shared;
mod takeover;
mod versions;
