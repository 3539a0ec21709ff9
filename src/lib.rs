//! Pinion resolves image tags while Argo CD renders.
//!
//! An application's files say which tags of an image are *permitted* (`$(pin ~1.2)`); Pinion asks the registry which exist, chooses the
//! newest permitted one, renders Helm, Kustomize or plain YAML with it, and returns the manifests.
//!
//! ```text
//! Argo CD ─ gRPC ─▶ server ─▶ archive  bytes -> verified index ─▶ what a render reads
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
//! From the ground up: a module uses only modules above it in these tables (`tests/pinion/direction.rs`).
//!
//! The ground:
//!
//! | module | subject |
//! |---|---|
//! | [`image`] | repository, tag, digest, platform: the grammars that nothing from outside gets around |
//! | [`yaml`] | YAML with byte positions; which plain texts read as strings |
//! | [`failure`] | errors for people: place, message, hint |
//! | [`clock`] | the time of day, which tests can move |
//! | [`metrics`] | counters, which the server shows |
//! | [`turn`] | how many renders work at once |
//! | [`shares`] | the tenants' shares of a budget in bytes |
//!
//! Values in and values out. All but the last two are pure: no files, network, clock or tasks (`tests/pinion/purity.rs`):
//!
//! | module | subject |
//! |---|---|
//! | [`policy`] | which tags are permitted, and which of them wins |
//! | [`placeholder`] | find `$(pin …)`, tell its image, substitute |
//! | [`values`] | Helm's merged values, to tell the image of a placeholder |
//! | [`rules`] | what an application asks without placeholders |
//! | [`pin`] | what was chosen, and the forms in which it is kept |
//! | [`manifest`] | documents and images of rendered text |
//! | [`parameters`] | the plugin's parameters |
//! | [`application`] | what Argo CD tells a plugin of an application |
//!
//! The outside world:
//!
//! | module | subject |
//! |---|---|
//! | [`events`] | what other parts of the program learn of a render |
//! | [`egress`] | what may be connected to; the proxy of tools that fetch |
//! | [`process`] | tools as processes or warm workers, and their sandbox |
//! | [`store`] | what survives restarts and outages |
//! | [`workspace`] | the checkout that is only read, the directory of one render |
//! | [`registry`] | asking registries, and remembering what they said |
//! | [`resolve`] | questions become pins, fresh or last known good |
//! | [`render`] | Helm, Kustomize and directories, as Argo CD renders them |
//! | [`generate`] | the order of the steps |
//! | [`config`] | what the operator sets |
//! | [`server`] | the native mode: Argo CD's plugin protocol, and the admin port |
//! | [`cli`] | the command line |
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
pub mod events;
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
