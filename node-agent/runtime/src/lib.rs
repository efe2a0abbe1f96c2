//! Process plumbing that Sallyport's programs share. Knows nothing of forwards.

pub mod admin;
pub mod backoff;
pub mod descriptors;
pub mod file;
pub mod log;
pub mod once;
pub mod shutdown;
pub mod tasks;
pub mod text;
