//! PostgreSQL clusters.
