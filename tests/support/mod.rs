//! What tests, the demo and the benchmarks share: a registry, the examples in it, and a driver for the `pinion` program.

#![allow(dead_code, reason = "each program that includes this uses another part of it")]

pub mod argocd;
pub mod driver;
pub mod examples;
pub mod layout;
pub mod random;
pub mod real_registry;
pub mod registry;
