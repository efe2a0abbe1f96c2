//! What there is of the host's network beside rules, whichever engine they are put there by: tracked connections, sockets
//! that listen, and routes.

use sallyport_ruleset::listener::Listener;

use crate::conntrack::Conntrack;
use crate::listeners::listeners;
use crate::netlink::Error;
use crate::route::lookup::Lookups;

/// The network of a host.
pub trait Network {
    /// Connection tracking; none where no kernel is involved.
    fn conntrack(&self) -> Result<Option<Conntrack>, Error>;

    /// The sockets that listen; `None` where no kernel is involved.
    fn listeners(&self) -> Result<Option<Vec<Listener>>, Error>;

    /// What becomes of packets by the routes; `None` where no kernel is involved.
    fn lookups(&self) -> Option<Lookups>;
}

/// The network namespace of the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Namespace;

impl Network for Namespace {
    fn conntrack(&self) -> Result<Option<Conntrack>, Error> {
        Conntrack::open().map(Some)
    }

    fn listeners(&self) -> Result<Option<Vec<Listener>>, Error> {
        listeners().map(Some)
    }

    fn lookups(&self) -> Option<Lookups> {
        Some(Lookups::default())
    }
}

/// No kernel at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoKernel;

impl Network for NoKernel {
    fn conntrack(&self) -> Result<Option<Conntrack>, Error> {
        Ok(None)
    }

    fn listeners(&self) -> Result<Option<Vec<Listener>>, Error> {
        Ok(None)
    }

    fn lookups(&self) -> Option<Lookups> {
        None
    }
}
