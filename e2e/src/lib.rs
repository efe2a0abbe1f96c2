//! Sallyport seen from outside: network labs made of namespaces, the programs run inside them, and the
//! packets that go through. The demo, the benchmarks and the end-to-end tests are built from these parts.
//! The other crates of the workspace are used here as programs only, never as libraries.

pub mod article;
pub mod bench;
pub mod binaries;
pub mod cluster;
pub mod control_plane;
pub mod demo;
pub mod demo_standalone;
pub mod faults;
pub mod firewalls;
pub mod gateway;
pub mod lab;
pub mod manifest;
pub mod packages;
pub mod permissions;
pub mod program;
pub mod runner;
pub mod running;
pub mod script;
pub mod snapshot;
pub mod traffic;
pub mod wait;
pub mod watch;
