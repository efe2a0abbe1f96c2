//! Text for people: lists that name the first few, and texts cut to what a field takes.

use std::fmt::Display;

/// The first `most` of `items`, `between` them what is given, and how many more there are: after `rest`, `N more`.
///
/// With `", "` and `" and "`: `gw1, gw2, gw3 and 4 more`.
pub fn listed<T: Display>(items: impl IntoIterator<Item = T>, most: usize, between: &str, rest: &str) -> String {
    let mut items = items.into_iter();
    let first: Vec<String> = items.by_ref().take(most).map(|item| item.to_string()).collect();
    let text = first.join(between);
    match items.count() {
        0 => text,
        more => format!("{text}{rest}{more} more"),
    }
}

/// The text, or the beginning of it with an ellipsis: at most so many characters.
pub fn cut(text: impl Into<String>, most: usize) -> String {
    let text = text.into();
    if text.chars().count() <= most { text } else { text.chars().take(most - 1).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_the_first_and_counts_the_others() {
        for (items, expected) in [
            (&[][..], ""),
            (&["gw1"], "gw1"),
            (&["gw1", "gw2", "gw3"], "gw1, gw2, gw3"),
            (&["gw1", "gw2", "gw3", "gw4"], "gw1, gw2, gw3 and 1 more"),
        ] {
            assert_eq!(listed(items, 3, ", ", " and "), expected);
        }
        assert_eq!(listed([1, 2, 3, 4], 2, "; and by ", "; and by "), "1; and by 2; and by 2 more");
    }

    #[test]
    fn a_text_is_cut_by_characters_and_shows_it() {
        for (text, expected) in [("", ""), ("über", "über"), ("übers", "übe…")] {
            assert_eq!(cut(text, 4), expected);
        }
    }
}
