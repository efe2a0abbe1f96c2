//! Ranges of ports, found by a port that they share with another range: an interval tree.
//!
//! A range stands at its middle, the number in it that the highest power of two divides. Whatever shares a port with
//! `first..=last` has its middle in there, or at one of the sixteen places at most on either side whose ranges can reach in.
//! Ports are so few that these places follow from the numbers, so there is no tree to keep in balance.

use std::collections::BTreeMap;

/// Middles that are also kept together, so that a wide range is not looked through port by port.
const BLOCK: u32 = 256;

/// Where a range is found. The second number of a place grows the further a range reaches from its middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// By its middle.
    At(u16),
    /// By the block that its middle is in.
    Block(u16),
    /// By its middle and its last port.
    Up(u16, u16),
    /// By its middle and `!first`.
    Down(u16, u16),
}

/// Values, each on a range of ports. Of those that share a port with some range the one with the least key is found;
/// the default of a key is the least that there can be.
#[derive(Debug)]
pub(crate) struct Intervals<Key, Value> {
    values: BTreeMap<(Place, Key), Value>,
}

impl<Key, Value> Default for Intervals<Key, Value> {
    fn default() -> Self {
        Self { values: BTreeMap::new() }
    }
}

impl<Key: Copy + Default + Ord, Value: Copy> Intervals<Key, Value> {
    /// Puts `value` on `first..=last`. No two ranges have the same `key`.
    pub(crate) fn insert(&mut self, (first, last): (u16, u16), key: Key, value: Value) {
        self.values.extend(places(first, last).map(|place| ((place, key), value)));
    }

    /// Takes away what [`Self::insert`] put there.
    pub(crate) fn remove(&mut self, (first, last): (u16, u16), key: Key) {
        for place in places(first, last) {
            self.values.remove(&(place, key));
        }
    }

    /// The least key of those that share a port with `first..=last` and whose value is `wanted`, and that value.
    pub(crate) fn least(&self, (first, last): (u16, u16), wanted: impl Fn(&Value) -> bool) -> Option<(Key, Value)> {
        let inside = self.inside(u32::from(first), u32::from(last), &wanted);
        let below = below(first)
            .filter_map(|middle| self.among(Place::Up(middle, first), Place::Up(middle, u16::MAX), &wanted));
        let above = above(last)
            .filter_map(|middle| self.among(Place::Down(middle, !last), Place::Down(middle, u16::MAX), &wanted));
        inside.into_iter().chain(below).chain(above).min_by_key(|(key, _)| *key)
    }

    /// Of those whose middle is in `first..=last`.
    fn inside(&self, first: u32, last: u32, wanted: &impl Fn(&Value) -> bool) -> Option<(Key, Value)> {
        let at = |first, last| self.among(Place::At(port(first)), Place::At(port(last)), wanted);
        let (block, end) = (first.div_ceil(BLOCK), (last + 1) / BLOCK);
        if block >= end {
            return at(first, last);
        }
        let before = (first < block * BLOCK).then(|| at(first, block * BLOCK - 1)).flatten();
        let blocks = self.among(Place::Block(port(block)), Place::Block(port(end - 1)), wanted);
        let after = (end * BLOCK <= last).then(|| at(end * BLOCK, last)).flatten();
        [before, blocks, after].into_iter().flatten().min_by_key(|(key, _)| *key)
    }

    /// Of those in places from `place` to `end`.
    fn among(&self, mut place: Place, end: Place, wanted: &impl Fn(&Value) -> bool) -> Option<(Key, Value)> {
        let mut least: Option<(Key, Value)> = None;
        loop {
            let Some((&(found, _), _)) = self.values.range((place, Key::default())..).next() else { return least };
            if found > end {
                return least;
            }
            let mut here = self.values.range((found, Key::default())..).take_while(|((at, _), _)| *at == found);
            // In the order of keys, so that one step past those that are not wanted is enough.
            if let Some((&(_, key), &value)) = here.find(|(_, value)| wanted(value))
                && least.is_none_or(|(least, _)| key < least)
            {
                least = Some((key, value));
            }
            let Some(next) = found.next() else { return least };
            place = next;
        }
    }
}

impl Place {
    /// The next one of its kind.
    fn next(self) -> Option<Self> {
        match self {
            Self::At(middle) => middle.checked_add(1).map(Self::At),
            Self::Block(block) => block.checked_add(1).map(Self::Block),
            Self::Up(middle, last) => last.checked_add(1).map(|last| Self::Up(middle, last)),
            Self::Down(middle, first) => first.checked_add(1).map(|first| Self::Down(middle, first)),
        }
    }
}

/// Everywhere that `first..=last` has to be found.
fn places(first: u16, last: u16) -> impl Iterator<Item = Place> {
    let middle = middle(first, last);
    let block = Place::Block(port(u32::from(middle) / BLOCK));
    let up = (middle < last).then_some(Place::Up(middle, last));
    let down = (first < middle).then_some(Place::Down(middle, !first));
    [Place::At(middle), block].into_iter().chain(up).chain(down)
}

/// The number in `first..=last` that the highest power of two divides.
fn middle(first: u16, last: u16) -> u16 {
    let Some(before) = first.checked_sub(1) else { return 0 };
    // The highest digit in which the number before the first one and the last one differ: all below it may be zero.
    let digit = (before ^ last).checked_ilog2().unwrap_or(0);
    (last >> digit) << digit
}

/// The middles below `first` of ranges that can reach it: `first` with its lowest digits cleared, one after the other.
fn below(first: u16) -> impl Iterator<Item = u16> {
    std::iter::successors(Some(first), |port| (*port != 0).then(|| port & (port - 1))).skip(1)
}

/// The middles above `last` of ranges that can reach it: as below, seen from the other end.
fn above(last: u16) -> impl Iterator<Item = u16> {
    let zeros = (0..u16::BITS).filter(move |digit| last >> digit & 1 == 0);
    zeros.map(move |digit| (last >> digit | 1) << digit)
}

/// A number that is one of a port, or of a block of them.
fn port(number: u32) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
