//! Traffic for the labs: a server that tells whom it sees, clients that ask it, and a load generator that
//! counts every loss. Each runs inside a host by executing this package's own program there.

mod ask;
mod late;
mod load;
mod probe;
mod serve;

pub use ask::{Answer, Ask, Held, Protocol, Stopwatch, ask, ask_from, hold, wait_for_first_answer};
pub use late::{Late, send_late};
pub use load::{Connector, Latency, Load, LoadReport, RunningLoad, percentile};
pub use probe::{Probe, Question, probe};
pub use serve::{Serve, serve};
