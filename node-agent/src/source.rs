//! Where intents come from. On a lone host: a directory of manifests, decided upon right here.

pub mod directory;
pub mod local;
pub mod watch;
