//! Everything that needs a registry, a tool or the program itself. One binary: it links once.

#![allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]

#[path = "../support/mod.rs"]
mod support;

#[path = "../registry/client.rs"]
mod client;

mod cache;
mod cases;
mod chart;
mod cli;
mod corpus;
mod direction;
mod docs;
mod examples;
mod faults;
mod fetches;
mod fixtures;
mod generated;
mod manifests;
mod parity;
mod peer;
mod protocol;
mod purity;
mod real_registries;
mod recall;
mod render_cache;
mod sandbox;
mod serve;
mod store;
mod tagsortmode;
mod tenants;
mod worker;
