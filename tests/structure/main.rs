//! What the tree promises of itself, read from its own files: pages, layers, keys. Nothing is started here.

mod crates;
mod docs;
mod keys;
mod tree;
