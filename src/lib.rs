//! Pinion resolves image tags while Argo CD renders.
//!
//! An application's files say which tags of an image are *permitted* (`$(pin ~1.2)`); Pinion asks the registry which exist, chooses the
//! newest permitted one, renders Helm, Kustomize or plain YAML with it, and returns the manifests.
//!
//! ```text
//! Argo CD ─ gRPC ─▶ server ─▶ archive  bytes -> verified pack ─▶ what a render reads
//! environment | Application manifest ─▶ application, parameters          one checked value
//! directory ──────────────────────────▶ workspace                        confined files
//!                          ▼
//!               generate ─ rules ─ placeholder::find                     pure
//!                          ├─ render::Plan ─ values: image of each       pure
//!                          ▼
//!                        resolve ─▶ registry: record ─▶ client ─▶ registry
//!                          │          └─▶ store: records, last known good pins
//!                          │         policy.select                       pure
//!                          ▼ pins
//!               placeholder::substitute ─▶ render ─▶ process ─▶ helm (warm, or a process) | kustomize
//!                          ▼ text
//!               manifest::rewrite                                        pure
//!                          ▼
//!                       manifests
//! ```
//!
//! # Modules
//!
//! Pure, values in and values out:
//!
//! | module | subject |
//! |---|---|
//! | [`image`] | repository, tag, digest, platform: the grammars that nothing from outside gets around |
//! | [`yaml`] | YAML with byte positions; which plain texts read as strings |
//! | [`policy`] | which tags are permitted, and which of them wins |
//! | [`placeholder`] | find `$(pin …)`, tell its image, substitute |
//! | [`values`] | Helm's merged values, to tell the image of a placeholder |
//! | [`rules`] | what an application asks without placeholders |
//! | [`pin`] | what was chosen, and the forms in which it is kept |
//! | [`manifest`] | documents and images of rendered text |
//!
//! The outside world:
//!
//! | module | subject |
//! |---|---|
//! | [`registry`] | asking registries, remembering what they said |
//! | [`store`], [`shares`], [`clock`] | what survives a restart, the tenants' shares of bytes, the time of day |
//! | [`resolve`] | questions become pins, fresh or last known good |
//! | [`workspace`] | the checkout that is only read, the directory of one render |
//! | [`render`], [`process`] | Helm, Kustomize and directories, as Argo CD does it |
//! | [`application`], [`parameters`] | what Argo CD tells a plugin |
//! | [`config`] | what the operator sets |
//! | [`generate`] | the order of the steps |
//! | [`server`], [`turn`] | the native mode, and how many renders work at once |
//! | [`metrics`] | counters, which the server shows |
//! | [`cli`], [`failure`] | the command line, and errors for people |
//!
//! # Words
//!
//! **config** what the operator sets · **rules** what the application asks · **placeholder** a token in the application's files ·
//! **policy** how to choose among tags · **selection** the choice with its reasons · **pin** image, tag and digest that were chosen ·
//! **workspace** the private directory of one request · **render** files to manifests.

pub mod application;
pub mod cli;
pub mod clock;
pub mod config;
pub mod egress;
pub mod failure;
pub mod generate;
pub mod image;
pub mod manifest;
pub mod metrics;
pub mod parameters;
pub mod pin;
pub mod placeholder;
pub mod policy;
pub mod process;
pub mod registry;
pub mod render;
pub mod resolve;
pub mod rules;
pub mod server;
pub mod shares;
pub mod store;

pub mod turn;
pub mod values;
pub mod workspace;
pub mod yaml;
