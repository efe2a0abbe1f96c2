//! The settings of connection tracking by which rules differ, and how much room is left in its table.

use std::fs;

use sallyport_ruleset::facts::Tracking;

use crate::sysctl::Sysctl;

/// How many connections are known, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// `nf_conntrack_count`
    pub count: u64,
    /// `nf_conntrack_max`, which is of the whole host.
    pub max: u64,
}

impl Sysctl {
    /// What connection tracking does with segments that it cannot place; as kernels have it where that cannot be read, as before
    /// anything is tracked.
    #[must_use]
    pub fn tracking(&self) -> Tracking {
        let usual = Tracking::default();
        let is_on = |name: &str, usual: bool| self.number(name).map_or(usual, |value| value != 0);
        Tracking {
            liberal: is_on("nf_conntrack_tcp_be_liberal", usual.liberal),
            loose: is_on("nf_conntrack_tcp_loose", usual.loose),
        }
    }

    /// How much room its table has; `None` where that cannot be read, and where it has no end.
    #[must_use]
    pub fn room(&self) -> Option<Room> {
        let (count, max) = (self.number("nf_conntrack_count")?, self.number("nf_conntrack_max")?);
        (max > 0).then_some(Room { count, max })
    }

    fn number(&self, name: &str) -> Option<u64> {
        fs::read_to_string(self.root().join("netfilter").join(name)).ok()?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_as_kernels_have_it() {
        let guard = tempfile::tempdir().unwrap();
        let sysctl = Sysctl::new(guard.path());
        assert_eq!((sysctl.tracking(), sysctl.room()), (Tracking::default(), None));
        fs::create_dir(guard.path().join("netfilter")).unwrap();
        let write = |name: &str, value: &str| fs::write(guard.path().join("netfilter").join(name), value).unwrap();
        write("nf_conntrack_tcp_be_liberal", "1\n");
        assert_eq!(sysctl.tracking(), Tracking { liberal: true, loose: true });
        write("nf_conntrack_tcp_loose", "0\n");
        assert_eq!(sysctl.tracking(), Tracking { liberal: true, loose: false });
        write("nf_conntrack_count", "7\n");
        write("nf_conntrack_max", "0\n");
        assert_eq!(sysctl.room(), None);
        write("nf_conntrack_max", "9\n");
        assert_eq!(sysctl.room(), Some(Room { count: 7, max: 9 }));
    }
}
