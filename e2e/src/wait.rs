//! Awaiting a condition with a deadline: the only way anything here waits for a state.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Time between two looks at a condition.
const POLL: Duration = Duration::from_millis(10);

/// Looks at `condition` until it gives a value, and says how long that took. Fails with `what` once
/// `limit` has passed.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<(T, Duration)> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok((value, start.elapsed()));
        }
        if start.elapsed() >= limit {
            bail!("not seen within {} ms: {what}", limit.as_millis());
        }
        std::thread::sleep(POLL);
    }
}

/// Looks at `condition` until it holds, and says how long that took. Fails with `what` once `limit` has
/// passed.
pub fn until_true(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<Duration> {
    until(what, limit, || Ok(condition()?.then_some(()))).map(|((), elapsed)| elapsed)
}

/// Tries `attempt` until it succeeds. Fails with `what` and its last error once `limit` has passed.
pub fn until_ok(what: &str, limit: Duration, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let mut last = None;
    until_true(what, limit, || {
        last = attempt().err();
        Ok(last.is_none())
    })
    .map_err(|error| last.take().unwrap_or(error).context(what.to_owned()))
    .map(drop)
}

/// Fails with `what` as soon as `condition` stops holding within `span`.
pub fn holds_for(what: &str, span: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < span {
        if !condition()? {
            bail!("did not hold: {what} (seen after {} ms)", start.elapsed().as_millis());
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
