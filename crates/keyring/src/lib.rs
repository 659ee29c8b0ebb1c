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
//! | [`vault_transit`] | keys wrapped by their Transit engine |
//! | [`aws_kms`], [`gcp_kms`], [`azure_key_vault`] | keys wrapped by the clouds' services |
//! | [`pkcs11`] | keys wrapped in a hardware security module |
//! | [`kmip`] | keys in an enterprise key manager |
//! | [`command`] | keys that a program prints |
//! | [`configured`] | the kinds of providers, and the file that configures several |
//! | [`breaker`] | how a provider that keeps failing is left alone |
//! | [`call`] | calls over a network: bounded, cancellable, off the calling thread |
//! | [`log`] | the keyed digests of the lifecycle log |
//! | [`material`] | what is made of a version's bytes: ciphers and subkeys |
//! | [`digest`] | keyed digests of plaintexts: what indexes hold |
//! | [`cache`] | the keys that a process has fetched |
//! | [`refresh`] | fetches keys again before they expire |
//! | [`secret`] | memory that is locked, left out of core dumps and wiped |
//!
//! All `unsafe` code is in [`secret`] and in the private module `sys`, which wraps the system calls
//! that the standard library lacks.
#![deny(unsafe_code)]

mod address;
pub mod aws_kms;
pub mod azure_key_vault;
pub mod breaker;
pub mod cache;
pub mod call;
pub mod command;
pub mod configured;
pub mod digest;
pub mod file;
pub mod gcp_kms;
mod http;
pub mod kmip;
pub mod log;
pub mod logins;
pub mod material;
mod oauth;
mod options;
pub mod pkcs11;
pub mod provider;
pub mod refresh;
pub mod secret;
mod sys;
mod tls;
pub mod vault;
pub mod vault_transit;
pub mod version;
mod watched;
