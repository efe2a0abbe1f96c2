//! When a forward expires. What time it is now is for the caller to say.

use sallyport_api::id::Moment;
use sallyport_api::intent::Intent;
use sallyport_api::names::MAX_LIFETIME_HOURS;

/// Whether the intent expired at `now` or before.
#[must_use]
pub fn has_expired(intent: &Intent, now: Moment) -> bool {
    intent.expires_at.is_some_and(|expiry| expiry <= now)
}

/// The seconds of a duration such as `1h30m`; `None` if it is none, or not from 1s to [`MAX_LIFETIME_HOURS`].
#[must_use]
pub fn lifetime(text: &str) -> Option<i64> {
    let (mut seconds, mut digits, mut parts) = (0, String::new(), 0);
    for c in text.chars() {
        let unit = match c {
            '0'..='9' if digits.len() < 5 => {
                digits.push(c);
                continue;
            }
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        seconds += unit * std::mem::take(&mut digits).parse::<i64>().ok()?;
        parts += 1;
    }
    let whole = digits.is_empty() && parts <= 3;
    (whole && (1..=MAX_LIFETIME_HOURS * 3600).contains(&seconds)).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_read_as_it_is_written() {
        let rows = [
            ("1s", 1),
            ("90m", 5400),
            ("24h", 86_400),
            ("1h30m", 5400),
            ("1h1m1s", 3661),
            ("00001h", 3600),
            ("99999s", 99_999),
            ("87600h", 315_360_000),
        ];
        for (text, seconds) in rows {
            assert_eq!(lifetime(text), Some(seconds), "{text}");
        }
        for text in [
            "", "0s", "0h", "24", "h", "1d", "1.5h", "-1h", "+1h", "1 h", "1h30", "100000s", "1ms", "1h1h1h1h",
            "87600h1s", "87601h", "１h",
        ] {
            assert_eq!(lifetime(text), None, "{text}");
        }
    }
}
