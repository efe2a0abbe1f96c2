//! One netlink question to the kernel and its answers, with a deadline on every wait.
//!
//! What the questions mean is in the modules that ask them. Multicast groups are not joined here.

use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::io;
use std::time::Duration;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP,
    NLMSG_OVERRUN, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::{Socket as RawSocket, SocketAddr};
use socket2::SockRef;

/// How long one answer may take. The kernel answers within the call that sends the question, so
/// this is reached only when something is badly wrong.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// The kernel never puts more than this into one datagram of a dump (`netlink_recvmsg` in
/// `net/netlink/af_netlink.c`).
const DATAGRAM_BYTES: usize = 32 * 1024;

/// `recv` returns the length of the datagram, even when it was longer than the buffer
/// (`MSG_TRUNC` of recv(2)).
const MSG_TRUNC: i32 = 0x20;

/// The subsystem that a transaction is for (`include/uapi/linux/netfilter/nfnetlink.h`).
const NFNL_SUBSYS_NFTABLES: u16 = 10;

/// Times that a list is asked for that changes while it is read.
const LISTS: usize = 32;

/// What `list` gives once nobody has changed anything meanwhile. Whoever asks the kernel for a list has to ask anew then.
pub(crate) fn whole<T>(mut list: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    let mut tries = 1;
    loop {
        match list() {
            Err(Error::Interrupted { .. }) if tries < LISTS => tries += 1,
            outcome => return outcome,
        }
    }
}

/// What can go wrong between a question and its answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket could be had, for instance because the kernel lacks the protocol.
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    /// The question did not leave.
    #[error("{question}: send to the kernel")]
    Send {
        /// What was asked.
        question: &'static str,
        /// Why it was not sent.
        source: io::Error,
    },
    /// The answer could not be received, or did not come in time.
    #[error("{question}: receive from the kernel")]
    Receive {
        /// What was asked.
        question: &'static str,
        /// `WouldBlock` when the deadline passed.
        source: io::Error,
    },
    /// The kernel understood and refused.
    #[error("{question}: refused by the kernel")]
    Refused {
        /// What was asked.
        question: &'static str,
        /// The kernel's errno.
        source: io::Error,
    },
    /// The answer is not what the protocol says.
    #[error("{question}: decode the answer")]
    Decode {
        /// What was asked.
        question: &'static str,
        /// What does not fit.
        source: DecodeError,
    },
    /// What was being listed changed meanwhile, so the list may have holes: ask again.
    #[error("{question}: the kernel's list changed while it was read")]
    Interrupted {
        /// What was asked.
        question: &'static str,
    },
}

/// An open netlink socket that only the kernel can answer.
///
/// After an error other than [`Error::Refused`] an unread rest of the answer may be pending: open
/// a new one.
#[derive(Debug)]
pub struct Socket {
    raw: RawSocket,
    sequence: Cell<u32>,
    /// What was received last; between two questions nobody looks at it.
    datagram: RefCell<Vec<u8>>,
}

impl Socket {
    /// Opens a socket of `protocol`, one of [`netlink_sys::protocols`], in the network namespace
    /// of the calling thread.
    pub fn open(protocol: isize) -> Result<Self, Error> {
        let connect = || {
            let mut raw = RawSocket::new(protocol)?;
            raw.bind_auto()?;
            raw.connect(&SocketAddr::new(0, 0))?;
            SockRef::from(&raw).set_read_timeout(Some(ANSWER_DEADLINE))?;
            Ok(raw)
        };
        Ok(Self { raw: connect().map_err(Error::Open)?, sequence: Cell::new(0), datagram: RefCell::default() })
    }

    /// Sends `message` and gives every answer to `each`, in order and one at a time.
    ///
    /// `flags` decide where the answer ends: with `NLM_F_DUMP` at the end of the list, with
    /// `NLM_F_ACK` at the kernel's yes or no, with neither after the first message.
    /// `question` names what is asked, for errors.
    pub fn ask<M>(
        &self,
        question: &'static str,
        message: M,
        flags: u16,
        each: impl FnMut(M) -> Result<(), DecodeError>,
    ) -> Result<(), Error>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Debug,
    {
        let mut datagram = self.datagram.take();
        datagram.resize(DATAGRAM_BYTES, 0);
        let outcome = self.ask_into(&mut datagram, question, message, flags, each);
        self.datagram.replace(datagram);
        outcome
    }

    fn ask_into<M>(
        &self,
        datagram: &mut [u8],
        question: &'static str,
        message: M,
        flags: u16,
        mut each: impl FnMut(M) -> Result<(), DecodeError>,
    ) -> Result<(), Error>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Debug,
    {
        let mut answer = Answer::to(self.send(question, message, flags)?);
        let single = flags & (NLM_F_DUMP | NLM_F_ACK) == 0;
        loop {
            let length = self.receive(question, datagram)?;
            let end = answer.take_in(&datagram[..length], |message| {
                match NetlinkMessage::<M>::deserialize(message)?.payload {
                    NetlinkPayload::InnerMessage(message) => each(message).map(|()| single),
                    _ => Ok(false),
                }
            });
            if let Some(outcome) = ended(question, end) {
                return outcome;
            }
        }
    }

    /// Sends `message`, which asks for a list, and gives what stands behind the header of each entry to `each`, undecoded: a list
    /// may be long, and little of it may matter. Others run after each of its parts.
    pub async fn list<M>(
        &self,
        question: &'static str,
        message: M,
        mut each: impl FnMut(&[u8]) -> Result<(), DecodeError>,
    ) -> Result<(), Error>
    where
        M: NetlinkSerializable,
    {
        let mut answer = Answer::to(self.send(question, message, NLM_F_DUMP)?);
        let mut datagram = vec![0; DATAGRAM_BYTES];
        loop {
            let length = self.receive(question, &mut datagram)?;
            let end = answer
                .take_in(&datagram[..length], |message| each(NetlinkBuffer::new(message).payload()).map(|()| false));
            tokio::task::yield_now().await;
            if let Some(outcome) = ended(question, end) {
                return outcome;
            }
        }
    }

    /// Sends `messages` as one nftables transaction (`NFNL_MSG_BATCH_BEGIN`, `include/uapi/linux/netfilter/nfnetlink.h`):
    /// all of them happen or none. The kernel's first refusal is the error.
    pub fn transaction(&self, question: &'static str, messages: Vec<(NetfilterMessage, u16)>) -> Result<(), Error> {
        let control = |message| {
            let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFNL_SUBSYS_NFTABLES);
            (NetfilterMessage::new(header, message), 0)
        };
        let mut bytes = Vec::new();
        let first = self.sequence.get().wrapping_add(1);
        let mut last = first;
        let messages = messages.into_iter().map(|(message, flags)| (message, flags | NLM_F_ACK));
        let batch = std::iter::once(control(ControlMessage::BatchBegin))
            .chain(messages)
            .chain(std::iter::once(control(ControlMessage::BatchEnd)));
        for (message, flags) in batch {
            let sequence = self.write(&mut bytes, message, flags);
            if flags & NLM_F_ACK != 0 {
                last = sequence;
            }
        }
        self.raw.send(&bytes, 0).map_err(|source| Error::Send { question, source })?;
        let mut datagram = vec![0; DATAGRAM_BYTES];
        loop {
            let length = self.receive(question, &mut datagram)?;
            let mut rest = &datagram[..length];
            while !rest.is_empty() {
                let answer = NetlinkMessage::<NetfilterMessage>::deserialize(rest)
                    .map_err(|source| Error::Decode { question, source })?;
                let (header, payload) = answer.into_parts();
                rest = rest.get(padded(header.length)..).unwrap_or_default();
                let NetlinkPayload::Error(answer) = payload else { continue };
                if header.sequence_number < first {
                    // The rest of an earlier transaction that was refused.
                    continue;
                }
                match answer.raw_code() {
                    0 if header.sequence_number == last => return Ok(()),
                    0 => {}
                    code => {
                        let source = io::Error::from_raw_os_error(code.saturating_abs());
                        return Err(Error::Refused { question, source });
                    }
                }
            }
        }
    }

    fn send<M>(&self, question: &'static str, message: M, flags: u16) -> Result<u32, Error>
    where
        M: NetlinkSerializable,
    {
        let mut bytes = Vec::new();
        let sequence = self.write(&mut bytes, message, flags);
        match self.raw.send(&bytes, 0) {
            Ok(_) => Ok(sequence),
            Err(source) => Err(Error::Send { question, source }),
        }
    }

    /// Appends a request to `bytes` and returns its sequence number.
    fn write<M>(&self, bytes: &mut Vec<u8>, message: M, flags: u16) -> u32
    where
        M: NetlinkSerializable,
    {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        request.finalize();
        let start = bytes.len();
        bytes.resize(start + request.buffer_len(), 0);
        request.serialize(&mut bytes[start..]);
        sequence
    }

    fn receive(&self, question: &'static str, datagram: &mut [u8]) -> Result<usize, Error> {
        loop {
            match self.raw.recv(&mut &mut *datagram, MSG_TRUNC) {
                Ok(length) if length <= datagram.len() => return Ok(length),
                Ok(length) => {
                    let source = DecodeError::from(format!("datagram of {length} bytes"));
                    return Err(Error::Decode { question, source });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::Receive { question, source }),
            }
        }
    }
}

/// The messages that answer one question, as they come.
struct Answer {
    sequence: u32,
    interrupted: bool,
}

/// Where an answer ends.
enum End {
    /// Not yet.
    Open,
    /// At what was wanted.
    Single,
    /// At the end of a list, or the kernel's yes or no: its errno, negative, or 0.
    Said(i32),
    /// What was listed changed meanwhile.
    Interrupted,
}

impl Answer {
    fn to(sequence: u32) -> Self {
        Self { sequence, interrupted: false }
    }

    /// Gives each message in `datagram` that carries something to `each`, which says whether that was all.
    fn take_in(
        &mut self,
        datagram: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<bool, DecodeError>,
    ) -> Result<End, DecodeError> {
        let mut rest = datagram;
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest)?;
            let (length, sequence) = (message.length(), message.sequence_number());
            let (flags, kind) = (message.flags(), message.message_type());
            let (whole, next) = (&rest[..usize::try_from(length).unwrap_or(rest.len())], padded(length));
            rest = rest.get(next..).unwrap_or_default();
            if sequence != self.sequence {
                continue;
            }
            self.interrupted |= flags & NLM_F_DUMP_INTR != 0;
            match kind {
                NLMSG_DONE | NLMSG_ERROR => {
                    // Older kernels say nothing at the end of a list.
                    let code =
                        NetlinkBuffer::new(whole).payload().first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return Ok(if code == 0 && self.interrupted { End::Interrupted } else { End::Said(code) });
                }
                NLMSG_NOOP | NLMSG_OVERRUN => {}
                _ if each(whole)? => return Ok(End::Single),
                _ => {}
            }
        }
        Ok(End::Open)
    }
}

/// The outcome of a question, if its answer has ended.
fn ended(question: &'static str, end: Result<End, DecodeError>) -> Option<Result<(), Error>> {
    match end {
        Ok(End::Open) => None,
        Ok(End::Single | End::Said(0)) => Some(Ok(())),
        Ok(End::Said(code)) => {
            let source = io::Error::from_raw_os_error(code.saturating_abs());
            Some(Err(Error::Refused { question, source }))
        }
        Ok(End::Interrupted) => Some(Err(Error::Interrupted { question })),
        Err(source) => Some(Err(Error::Decode { question, source })),
    }
}

/// Messages in a datagram begin at multiples of four (`NLMSG_ALIGN`).
fn padded(length: u32) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX).next_multiple_of(4)
}
