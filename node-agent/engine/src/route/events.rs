//! The kernel's own word that addresses, routing rules or forwarding of this network namespace have changed, through rtnetlink(7).
//!
//! What has changed is not taken from the messages: whoever is woken reads it anew, so one that got lost, or came twice,
//! does no harm.

use std::io;

use futures::FutureExt as _;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

/// The groups to listen to (`enum rtnetlink_groups` in `include/uapi/linux/rtnetlink.h`): addresses, routing rules, and
/// forwarding with what else is set for an interface, of IPv4 and IPv6. Not routes: a router may have a million of them, and
/// change hundreds a second.
const GROUPS: [u32; 6] = [5, 9, 8, 19, 24, 25];
/// Messages are thrown away unread, so what does not fit in here does not matter.
const BUFFER_BYTES: usize = 64;

/// Says that addresses, routing rules or forwarding may have changed.
pub struct RouteEvents {
    socket: TokioSocket,
}

impl RouteEvents {
    /// Begins to listen, in the network namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.socket_mut().add_membership(group)?;
        }
        Ok(Self { socket })
    }

    /// Waits for the next change, and takes in all that has already come. Cancel-safe.
    pub async fn changed(&self) {
        let mut buffer = [0; BUFFER_BYTES];
        // An error, such as messages that were lost for want of space, is news as well.
        let mut outcome = Some(self.socket.recv(&mut &mut buffer[..]).await);
        while let Some(Ok(())) = outcome {
            outcome = self.socket.recv(&mut &mut buffer[..]).now_or_never();
        }
    }
}
