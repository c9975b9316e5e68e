//! What happened, as text and as a number.

use std::{
    fmt::{self, Write as _},
    io::Write,
    time::Duration,
};

use yrs_websocket_host::record::Fingerprint;

/// A log and its hash. Equal logs have equal hashes, whether or not somebody reads them.
pub(crate) struct Trace<'a> {
    hash: Fingerprint,
    text: String,
    log: Option<Box<dyn Write + 'a>>,
}

impl<'a> Trace<'a> {
    pub(crate) fn new(log: Option<Box<dyn Write + 'a>>) -> Self {
        Self { hash: Fingerprint::default(), text: String::new(), log }
    }

    /// Writes a readable log from now on.
    pub(crate) fn log_to(&mut self, log: Box<dyn Write + 'a>) {
        self.log = Some(log);
    }

    pub(crate) fn line(&mut self, now: Duration, line: fmt::Arguments<'_>) {
        self.bytes(now, line, &[]);
    }

    /// A line that ends with bytes. They are spelled out only where somebody reads them.
    pub(crate) fn bytes(&mut self, now: Duration, line: fmt::Arguments<'_>, bytes: &[u8]) {
        self.text.clear();
        let _ = self.text.write_fmt(line);
        for part in [&now.as_nanos().to_le_bytes(), self.text.as_bytes(), bytes] {
            self.hash.add(part);
        }
        let Some(log) = &mut self.log else { return };
        let separator = if bytes.is_empty() { "" } else { " " };
        let time = now.as_secs_f64();
        // A log that cannot be written is not worth losing the outcome for.
        let _ = writeln!(log, "{time:>12.6} {}{separator}{}", self.text, Hex(bytes));
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash.value()
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
