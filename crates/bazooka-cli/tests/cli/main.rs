//! The command line as people and scripts meet it: the real program, a real etcd, each test with a
//! prefix and a home of its own.
//!
//! The cluster's other parts are played by [`player::Player`] through visor's own transitions, so that a
//! test says what happens and when. The real ones are driven by the workspace's scenarios, and by `dev`.

mod bad_input;
mod changes;
mod hosts;
mod init;
mod links;
mod listings;
mod live;
mod operators;
mod player;
mod rig;
mod rollouts;
mod terminal;
