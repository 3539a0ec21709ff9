//! Pinion resolves image tags while Argo CD renders.

pub mod application;
pub mod failure;
pub mod image;
pub mod manifest;
pub mod parameters;
pub mod pin;
pub mod placeholder;
pub mod policy;
pub mod process;
pub mod registry;
pub mod render;
pub mod resolve;
pub mod rules;
pub mod values;
pub mod workspace;
pub mod yaml;
