//! A Kubernetes control plane whose nodes are hosts of a lab: API server, etcd and controllers are real, so are RBAC,
//! admission policies, tokens, the operator, the agents and every packet. Only the scheduler and the kubelet are
//! played by the test.
//!
//! Not here: images, the kubelet and the installation by Helm, which need a whole cluster.

mod api;
mod container;
mod kubectl;
pub mod kubelet;
pub(crate) mod operator;
mod pki;
pub mod programs;
pub mod scene;
pub(crate) mod server;
mod stopped;

pub use api::{Answer, Api};
pub use kubectl::Terminal;
pub use operator::Operator;
pub use stopped::Stopped;
