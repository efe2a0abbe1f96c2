//! The command line. No logic: other people's scripts call this, so names and meanings stay.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sallyport_api::gateway_pool::FirewallOrder;
use sallyport_runtime::log::Format;

/// Keeps this host's port forwards as its manifests say, proven by reading the kernel back.
#[derive(Debug, Parser)]
#[command(name = "sallyport-node-agent", version, max_term_width = 110)]
pub struct Cli {
    /// How to write logs to standard error.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, env = "SALLYPORT_LOG_FORMAT")]
    pub log_format: Format,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the agent can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Keep the kernel equal to what a directory of manifests says or, without `--manifests`, what the cluster says.
    Run(RunArgs),
    /// Print what `run` would change now, as a shell script, and touch nothing.
    Plan {
        /// Directory of manifests (*.yaml, *.yml; not recursive).
        #[arg(long, value_name = "DIR")]
        manifests: PathBuf,
        /// Which host.
        #[command(flatten)]
        host: HostArgs,
    },
    /// Print the rules for given gateway addresses, as a shell script, without looking at this host.
    Render {
        /// Directory of manifests (*.yaml, *.yml; not recursive).
        #[arg(long, value_name = "DIR")]
        manifests: PathBuf,
        /// An address of a gateway; repeat it for more.
        #[arg(long, value_name = "IP", required = true)]
        node_address: Vec<IpAddr>,
        /// Whose rules: the gateway's, or those that the targets' own firewalls need to let the gateways in.
        #[arg(long = "for", value_enum, default_value_t = Audience::Gateway)]
        audience: Audience,
    },
    /// Remove our rules and connections, put back what was changed on this host, and forget the state.
    Cleanup {
        /// The state directory of the agent, which must not be running.
        #[arg(long, value_name = "DIR")]
        state_dir: PathBuf,
    },
}

/// What `run` can be told.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Directory of manifests (*.yaml, *.yml; not recursive) to follow. Without it the agent follows the `GatewayNode` of
    /// its name in the cluster that KUBECONFIG, or the pod it runs in, leads to.
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Namespace of the agent's Lease; needed without --manifests.
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", required_unless_present = "manifests")]
    pub namespace: Option<String>,
    /// Which host.
    #[command(flatten)]
    pub host: HostArgs,
    /// Apply the manifests and verify once, then exit: 0 when every object was accepted and the kernel reads back equal,
    /// else 1.
    #[arg(long, requires = "manifests")]
    pub once: bool,
    /// Address to answer /healthz, /readyz and /metrics on.
    #[arg(long, value_name = "IP:PORT", conflicts_with = "once")]
    pub admin: Option<SocketAddr>,
}

/// What `run` and `plan` must know of the host.
#[derive(Clone, Debug, Args)]
pub struct HostArgs {
    /// Name of this node; in a cluster that of its Node and `GatewayNode`.
    #[arg(long, value_name = "NAME")]
    pub node_name: String,
    /// Where to keep what must survive a restart; one agent a directory.
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// How to program rules; `auto` follows the pool, and then the host's own rules.
    #[arg(long, value_enum, default_value_t = BackendArg::Auto)]
    pub backend: BackendArg,
    /// Who wins in FORWARD: what other firewalls deny by name, or the forwards; by default what the pool says.
    #[arg(long, value_enum)]
    pub order: Option<OrderArg>,
    /// Where the kernel's settings are mounted, writable for `run`.
    #[arg(long, value_name = "DIR", default_value = "/proc/sys")]
    pub proc_sys: PathBuf,
}

/// `--backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    /// What the pool says, else where the host's own rules are.
    Auto,
    /// iptables over `nf_tables`.
    IptablesNft,
    /// The original `x_tables` iptables.
    IptablesLegacy,
    /// Print, change nothing.
    DryRun,
}

/// `--order`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OrderArg {
    /// What other firewalls deny by name.
    AfterDenies,
    /// The forwards.
    First,
}

impl From<OrderArg> for FirewallOrder {
    fn from(order: OrderArg) -> Self {
        match order {
            OrderArg::AfterDenies => Self::AfterDenies,
            OrderArg::First => Self::First,
        }
    }
}

/// `--for`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Audience {
    /// The gateway's own rules.
    Gateway,
    /// What the targets must allow.
    Targets,
}
