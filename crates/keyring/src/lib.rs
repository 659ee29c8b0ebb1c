//! Data encryption keys: where they come from and how they are kept in memory.
