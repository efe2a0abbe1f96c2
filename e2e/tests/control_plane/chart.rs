//! The Helm chart as Helm renders it, without a cluster: what it refuses, what its values do, what it permits. That an API
//! server takes it and its policies hold is seen by the tests that install it.

mod helm;
mod objects;
mod permissions;
mod values;
