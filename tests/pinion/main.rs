//! Everything that needs a registry, a tool or the program itself. One binary: it links once.

#![allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]

#[path = "../support/mod.rs"]
mod support;

#[path = "../registry/client.rs"]
mod client;

mod cache;
mod cases;
mod cli;
mod corpus;
mod examples;
mod faults;
mod fetches;
mod known;
mod manifests;
mod order;
mod parity;
mod peer;
mod peers;
mod purity;
mod recall;
mod sandbox;
mod serve;
mod store;
mod tenants;
mod traps;
mod tree;
mod worker;
