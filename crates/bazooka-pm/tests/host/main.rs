//! One host: a real bazooka-pm with real processes over a real etcd. The test plays the converger.

mod abuse;
mod adopt;
mod archives;
mod coordinator;
mod envs;
mod life;
mod logs;
mod measure;
mod neighbour;
mod sandbox;
mod slugs;
mod space;
mod world;
