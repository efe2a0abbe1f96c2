//! Ranges of addresses and ports, cut where rules tell them apart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// `whole` cut at the borders of `ranges`.
pub(super) fn cells<T: Step>(
    whole: &[RangeInclusive<T>],
    ranges: impl Iterator<Item = RangeInclusive<T>>,
) -> Vec<RangeInclusive<T>> {
    // Where a cell begins.
    let mut begins: Vec<T> = ranges.flat_map(|range| [Some(*range.start()), range.end().next()]).flatten().collect();
    begins.sort_unstable();
    begins.dedup();
    let mut cells = Vec::new();
    for range in whole {
        let mut first = *range.start();
        for begin in begins.iter().filter(|begin| range.contains(begin) && **begin > *range.start()) {
            cells.extend(begin.previous().map(|last| first..=last));
            first = *begin;
        }
        cells.push(first..=*range.end());
    }
    cells
}

/// What has one before it and one behind it.
pub(super) trait Step: Ord + Copy {
    fn next(self) -> Option<Self>;
    fn previous(self) -> Option<Self>;
}

impl Step for u16 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

impl Step for IpAddr {
    fn next(self) -> Option<Self> {
        match self {
            Self::V4(ip) => Some(Self::V4(Ipv4Addr::from_bits(ip.to_bits().checked_add(1)?))),
            Self::V6(ip) => Some(Self::V6(Ipv6Addr::from_bits(ip.to_bits().checked_add(1)?))),
        }
    }

    fn previous(self) -> Option<Self> {
        match self {
            Self::V4(ip) => Some(Self::V4(Ipv4Addr::from_bits(ip.to_bits().checked_sub(1)?))),
            Self::V6(ip) => Some(Self::V6(Ipv6Addr::from_bits(ip.to_bits().checked_sub(1)?))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_where_others_begin_and_end() {
        let cut = |ranges: &[RangeInclusive<u16>]| cells(&[10..=20], ranges.iter().cloned());
        assert_eq!(cut(&[]), [10..=20]);
        assert_eq!(cut(&[0..=65535, 10..=20]), [10..=20]);
        assert_eq!(cut(&[12..=12, 15..=40]), [10..=11, 12..=12, 13..=14, 15..=20]);
    }
}
