//! Never compiled; see the manifest beside it.
