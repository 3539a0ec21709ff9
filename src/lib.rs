//! Pinion resolves image tags while Argo CD renders.

pub mod failure;
pub mod image;
pub mod manifest;
pub mod pin;
pub mod placeholder;
pub mod policy;
pub mod registry;
pub mod resolve;
pub mod rules;
pub mod values;
pub mod yaml;
