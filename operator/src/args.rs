//! The operator's command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use sallyport_runtime::log::Format;

/// Decides which port-forwards of a cluster hold and keeps their gateways configured.
#[derive(Debug, Parser)]
#[command(name = "sallyport-operator", version, max_term_width = 110)]
pub struct Cli {
    /// How to write logs to standard error.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, env = "SALLYPORT_LOG_FORMAT")]
    pub log_format: Format,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the operator can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Keep the gateways of the cluster configured, and say in every status what their kernels really hold.
    Run {
        /// Who this replica is, and where.
        #[command(flatten)]
        replica: ReplicaArgs,
        /// How the agents are run.
        #[command(flatten)]
        agent: AgentArgs,
        /// File with one `GatewayPool`, which is applied to the cluster at the start.
        #[arg(long, value_name = "FILE")]
        default_pool: Option<PathBuf>,
        /// A range of Services' addresses, which no target may be in; may be repeated. Kubernetes tells them from 1.33 on.
        #[arg(long = "service-cidr", value_name = "CIDR")]
        service_cidrs: Vec<IpNet>,
        /// Address for /healthz, /readyz and /metrics.
        #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:8080")]
        admin: SocketAddr,
    },
    /// Take every rule off every gateway, then everything else of ours but what users wrote. Stops the operator first.
    Uninstall {
        /// Who this replica is, and where.
        #[command(flatten)]
        replica: ReplicaArgs,
        /// Do not wait for agents that are silent or gone: the rules stay on their nodes, and are named.
        #[arg(long)]
        force: bool,
        /// Fail after so many seconds and say what is still waited for; without it there is no limit.
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
        timeout: Option<u64>,
    },
    /// Print the custom resource definitions of this version, for `kubectl apply --server-side -f -`.
    Crds,
}

/// Who a replica is.
#[derive(Clone, Debug, Args)]
pub struct ReplicaArgs {
    /// Namespace of the operator, the agents and their leases.
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Name of this replica, different from that of every other one.
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub identity: String,
}

/// How the agents are run.
#[derive(Clone, Debug, Args)]
pub struct AgentArgs {
    /// Image of the agents.
    #[arg(long, value_name = "IMAGE")]
    pub agent_image: String,
    /// When nodes pull it.
    #[arg(long, value_enum, default_value_t = PullPolicy::IfNotPresent)]
    pub agent_image_pull_policy: PullPolicy,
    /// Run the agents privileged, for hosts where two capabilities are not enough.
    #[arg(long)]
    pub agent_privileged: bool,
    /// How the agents write logs.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub agent_log_format: Format,
}

/// `imagePullPolicy` of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PullPolicy {
    /// At every start.
    #[value(name = "Always")]
    Always,
    /// When it is not there.
    #[value(name = "IfNotPresent")]
    IfNotPresent,
    /// Never.
    #[value(name = "Never")]
    Never,
}
