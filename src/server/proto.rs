//! The protocol's types, generated from `plugin.proto` by `build.rs`.

#![allow(clippy::all, reason = "generated code")]

tonic::include_proto!("plugin");

/// The protocol's description, for gRPC reflection.
pub const DESCRIPTOR: &[u8] = tonic::include_file_descriptor_set!("plugin");
