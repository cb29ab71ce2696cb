//! What the tree promises of itself, read from its own files: pages, layers, keys, sources. Nothing is started here.

mod crates;
mod docs;
mod keys;
mod sources;
mod tree;
