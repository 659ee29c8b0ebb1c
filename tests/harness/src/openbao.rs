//! OpenBao servers (the Vault API).
