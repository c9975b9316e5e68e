//! An instant to count from: only distances from it matter, and there is no other way to get one.

use std::time::Instant;

#[allow(clippy::disallowed_methods, reason = "a test needs some instant")]
pub(crate) fn epoch() -> Instant {
    Instant::now()
}
