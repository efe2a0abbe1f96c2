//! Says a thing once, and again only when it is another: what is tried every second must not fill the log.
//!
//! The words and the level are for whoever logs.

use std::borrow::Borrow;

/// What was last said about one matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once<T = String> {
    last: Option<T>,
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self { last: None }
    }
}

impl<T> Once<T> {
    /// Whether this is not what was said last; it counts as said from now on.
    pub fn is_news<Q>(&mut self, what: &Q) -> bool
    where
        T: Borrow<Q>,
        Q: ToOwned<Owned = T> + PartialEq + ?Sized,
    {
        let news = self.last.as_ref().map(Borrow::borrow) != Some(what);
        if news {
            self.last = Some(what.to_owned());
        }
        news
    }

    /// There is nothing to say any more; whether there was.
    pub fn clear(&mut self) -> bool {
        self.last.take().is_some()
    }

    /// What was said last, while it holds.
    #[must_use]
    pub fn last(&self) -> Option<&T> {
        self.last.as_ref()
    }
}

impl<T: Clone + PartialEq> Once<Vec<T>> {
    /// Those of a list that were not in it when it was last said; all of it counts as said from now on.
    pub fn news_of(&mut self, all: &[T]) -> Vec<T> {
        let before = self.last.replace(all.to_vec()).unwrap_or_default();
        all.iter().filter(|one| !before.contains(one)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_the_same_is_said_once() {
        let mut once = Once::default();
        assert!(once.is_news("no route") && !once.is_news("no route"));
        assert!(once.is_news("no address") && once.is_news("no route"));
        assert_eq!(once.last().map(String::as_str), Some("no route"));
        assert!(once.clear() && !once.clear(), "its end can be said once, too");
        assert!(once.is_news("no route"));
    }

    #[test]
    fn of_a_list_only_what_is_new_is_said() {
        let mut once = Once::default();
        assert_eq!(once.news_of(&["a", "b"]), ["a", "b"]);
        assert_eq!(once.news_of(&["b", "c"]), ["c"]);
        assert_eq!(once.news_of(&["a", "c"]), ["a"], "it had gone");
        assert!(!once.is_news(&["a", "c"][..]));
    }
}
