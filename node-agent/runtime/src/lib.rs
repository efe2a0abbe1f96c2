//! Process plumbing that Sallyport's programs share. Knows nothing of forwards.

pub mod admin;
pub mod descriptors;
pub mod file;
pub mod log;
pub mod shutdown;
pub mod tasks;
