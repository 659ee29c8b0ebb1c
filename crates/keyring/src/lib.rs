//! Data encryption keys: where they come from and how they are kept in memory.
//!
//! The crate knows neither PostgreSQL nor the catalog. A caller asks a [`provider::Provider`] for
//! the bytes of a key's version, compares them with the [`version::CheckValue`] that it stored when
//! the version was made, derives what it needs from them and keeps that in a [`cache::KeyCache`].
//!
//! | module | what it has |
//! | --- | --- |
//! | [`version`] | what names a version in full, its check value, the subkeys of the database key |
//! | [`provider`] | the trait of all providers, and their errors |
//! | [`mod@file`] | keys in a file, for trying out |
//! | [`vault`] | keys in the KV secrets engine, version 2, of HashiCorp Vault and OpenBao |
//! | [`call`] | calls over a network: bounded, cancellable, off the calling thread |
//! | [`material`] | what is made of a version's bytes: ciphers and subkeys |
//! | [`cache`] | the keys that a process has fetched |
//! | [`secret`] | memory that is locked, left out of core dumps and wiped |
//!
//! All `unsafe` code is in [`secret`] and in the private module `sys`, which wraps the system calls
//! that the standard library lacks.
#![deny(unsafe_code)]

pub mod cache;
pub mod call;
pub mod file;
pub mod material;
pub mod provider;
pub mod secret;
mod sys;
pub mod vault;
pub mod version;
mod watched;
