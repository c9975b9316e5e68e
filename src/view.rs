//! A yrs document over a journal, made when somebody on the server's side wants to read or edit.
//!
//! The document is fed from the journal lazily, kept while it is used, and is never the source of
//! anything: it may be dropped at any time. yrs panics on some updates; such a panic is contained
//! here and ends the view, not the room.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use bytes::Bytes;
use yrs::{
    Doc, OffsetKind, Options, Transact, Transaction, TransactionMut, Update, updates::decoder::Decode,
};

use crate::{
    journal::{Journal, Mark},
    update::ClientId,
};

/// A document that follows a journal.
#[derive(Debug)]
pub(crate) struct View {
    doc: Doc,
    /// How much of the journal the document has.
    mark: Option<Mark>,
    used: Instant,
}

/// Says why a document cannot be read or edited on the server's side. The room and its peers are not
/// affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// The room is not open, or still being loaded: connect to it first.
    #[error("the room is not open")]
    RoomNotOpen,
    /// yrs cannot read the document: it holds content that only Yjs knows, such as the JSON kind of
    /// early versions.
    #[error("yrs cannot decode the document")]
    NotDecodable,
    /// yrs panicked on the document, which somebody may have crafted for that.
    #[error("yrs panicked on the document")]
    Panicked,
    /// yrs wrote an edit that is not a well-formed update; it was not taken.
    #[error("yrs encoded a malformed update")]
    NotEncodable,
    /// More than [`Config::unstored_bytes_max`](crate::Config::unstored_bytes_max) would wait for the
    /// store: the edit was not taken. Try again when the store keeps up, and not in a loop: the next edit
    /// or reading builds the document anew.
    #[error("too much waits for the store; the edit was not taken")]
    StoreOverloaded,
}

impl View {
    /// Makes an empty view whose edits are those of `client_id`, which nobody may have used before.
    pub(crate) fn new(now: Instant, client_id: ClientId) -> Self {
        Self { doc: empty_document(yrs::ClientID::new(client_id.get())), mark: None, used: now }
    }

    /// Brings the document up to the journal. After an error the view is of no more use.
    pub(crate) fn catch_up(&mut self, now: Instant, journal: &Journal) -> Result<(), ViewError> {
        self.used = now;
        let news = self.mark.and_then(|mark| journal.updates_since(mark));
        let all = news.is_none().then(|| journal.updates());
        for update in news.into_iter().flatten().chain(all.into_iter().flatten()) {
            let doc = &self.doc;
            let applied = catch_unwind(AssertUnwindSafe(|| {
                let update = Update::decode_v1(update).map_err(|_| ViewError::NotDecodable)?;
                doc.transact_mut().apply_update(update).map_err(|_| ViewError::NotDecodable)
            }));
            applied.unwrap_or(Err(ViewError::Panicked))?;
        }
        self.mark = Some(journal.mark());
        Ok(())
    }

    /// The journal was squashed: what it has dropped goes with the document, which is built anew when it is used.
    pub(crate) fn squashed(&mut self) {
        self.doc = empty_document(self.doc.client_id());
        self.mark = None;
    }

    /// Lets `f` change the document; says what it changed, as an update.
    pub(crate) fn edit<R>(&mut self, f: impl FnOnce(&mut TransactionMut<'_>) -> R) -> (R, Bytes) {
        let mut transaction = self.doc.transact_mut();
        let result = f(&mut transaction);
        let update = transaction.encode_update_v1();
        (result, update.into())
    }

    pub(crate) fn read<R>(&self, f: impl FnOnce(&Transaction<'_>) -> R) -> R {
        f(&self.doc.transact())
    }

    /// When it was last used.
    pub(crate) fn used(&self) -> Instant {
        self.used
    }
}

fn empty_document(client_id: yrs::ClientID) -> Doc {
    // With a guid of our own: the other constructor draws one, and cleans up formatting by edits that
    // nobody asked for.
    let mut options = Options::with_guid_and_client_id("view".into(), client_id);
    // Indices as Yjs counts them.
    options.offset_kind = OffsetKind::Utf16;
    // A crafted update makes the collection of yrs 0.28 free structs that others still point at. What is
    // deleted meanwhile stays until the view goes, or the journal is squashed.
    options.skip_gc = true;
    Doc::with_options(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{epoch::epoch, journal::JournalLimits, update};

    /// Nothing that passes the default rules is known to make yrs panic, so these let more pass. What
    /// panics is an overflow, which is checked for in debug builds.
    #[test]
    #[cfg(debug_assertions)]
    fn a_panic_of_yrs_is_an_error() {
        let rules = update::ScanRules { clock_max: u64::MAX, ..Default::default() };
        let deletes_beyond_32_bits = Bytes::from_static(&[0, 1, 1, 1, 255, 255, 255, 255, 15, 2]);
        let mut journal = Journal::new(JournalLimits::default());
        let _ = journal.receive(&update::Update::scan(deletes_beyond_32_bits, &rules).unwrap());
        let now = epoch();
        let mut view = View::new(now, ClientId::new(7).unwrap());
        assert_eq!(view.catch_up(now, &journal), Err(ViewError::Panicked));
    }
}
