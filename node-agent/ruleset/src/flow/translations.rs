//! Where DNAT rules lead: from a port of an address to a port of a target.
//!
//! What a rule led to is known after the rule has gone, so that its connections are found by where they go: a connection
//! mark is anybody's to overwrite.

use std::collections::BTreeMap;
use std::net::IpAddr;

use sallyport_api::Protocol;
use serde::{Deserialize, Serialize};

use crate::binding::Binding;
use crate::flow::Flow;

/// A set of such ways.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Translation>", into = "Vec<Translation>")]
pub struct Translations(BTreeMap<(Way, u16), u16>);

/// From which address to which target, and by how much the port grows. The ports of one are ranges that do not touch, the last
/// port of each by the first.
type Way = (Protocol, IpAddr, IpAddr, i32);

/// A range of one way, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Translation {
    protocol: Protocol,
    listen: IpAddr,
    port: u16,
    end_port: u16,
    target: IpAddr,
    target_port: u16,
}

impl Translations {
    /// Those of the rules that `bindings` become.
    #[must_use]
    pub fn of<'a>(bindings: impl IntoIterator<Item = Binding<'a>>) -> Self {
        let mut all = Self::default();
        all.extend(bindings);
        all
    }

    /// Adds those of `bindings`.
    pub fn extend<'a>(&mut self, bindings: impl IntoIterator<Item = Binding<'a>>) {
        for binding in bindings {
            let port = binding.port;
            let shift = i32::from(port.target_port) - i32::from(port.port);
            for target in binding.targets() {
                self.insert((port.protocol, binding.listen, target.ip, shift), port.port, port.end_port);
            }
        }
    }

    /// Adds `others`.
    pub fn append(&mut self, others: Self) {
        for ((way, first), last) in others.0 {
            self.insert(way, first, last);
        }
    }

    fn insert(&mut self, way: Way, first: u16, last: u16) {
        let (mut first, mut last) = (first, last.max(first));
        while let Some((from, to)) = self.last_from(way, 0, last.saturating_add(1))
            && to.saturating_add(1) >= first
        {
            self.0.remove(&(way, from));
            (first, last) = (first.min(from), last.max(to));
        }
        self.0.insert((way, first), last);
    }

    /// Of the ranges of `way` that begin at `least` to `most`, the last.
    fn last_from(&self, way: Way, least: u16, most: u16) -> Option<(u16, u16)> {
        self.0.range((way, least)..=(way, most)).next_back().map(|((_, first), last)| (*first, *last))
    }

    /// The range around `port` on `way`.
    fn around(&self, way: Way, port: u16) -> Option<(u16, u16)> {
        self.last_from(way, 0, port).filter(|(_, last)| *last >= port)
    }

    /// Those that are not in `others`.
    #[must_use]
    pub fn without(&self, others: &Self) -> Self {
        let mut left = Self::default();
        for ((way, first), last) in &self.0 {
            let mut next = Some(*first);
            while let Some(first) = next.filter(|next| next <= last) {
                let end = if let Some((_, end)) = others.around(*way, first) {
                    end
                } else {
                    let beyond = others.0.range((*way, first)..=(*way, u16::MAX)).next();
                    let end = beyond.map_or(*last, |((_, beyond), _)| (*last).min(beyond - 1));
                    left.insert(*way, first, end);
                    end
                };
                next = end.checked_add(1);
            }
        }
        left
    }

    /// Whether this connection goes such a way.
    #[must_use]
    pub fn lead(&self, flow: &Flow) -> bool {
        self.around(way_of(flow), flow.original.dst.port()).is_some()
    }

    /// Adds the way of this connection.
    pub(super) fn add_way_of(&mut self, flow: &Flow) {
        self.insert(way_of(flow), flow.original.dst.port(), flow.original.dst.port());
    }

    /// The addresses that they lead from.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.0.keys().map(|((_, listen, ..), _)| *listen)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn way_of(flow: &Flow) -> Way {
    let (listen, server) = (flow.original.dst, flow.reply.src);
    (flow.protocol, listen.ip(), server.ip(), i32::from(server.port()) - i32::from(listen.port()))
}

impl From<Vec<Translation>> for Translations {
    fn from(written: Vec<Translation>) -> Self {
        let mut all = Self::default();
        for Translation { protocol, listen, port, end_port, target, target_port } in written {
            all.insert((protocol, listen, target, i32::from(target_port) - i32::from(port)), port, end_port);
        }
        all
    }
}

impl From<Translations> for Vec<Translation> {
    fn from(all: Translations) -> Self {
        let written = all.0.into_iter().map(|(((protocol, listen, target, shift), port), end_port)| {
            let target_port = u16::try_from(i32::from(port) + shift).unwrap_or_default();
            Translation { protocol, listen, port, end_port, target, target_port }
        });
        written.collect()
    }
}

#[cfg(test)]
mod tests;
