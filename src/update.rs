//! The algebra of encoded updates (Yjs' format v1): [`Update::scan`], [`join`], [`diff`], [`squash`].
//!
//! An update says by itself what it holds, and updates commute. So a server needs no document to know
//! what it has, what a peer lacks, or how to store less: it reads all that off the bytes. Everything
//! here is total, linear in its input (times a logarithm where sorting is needed) and without recursion,
//! and the bytes of living content are only ever copied, never decoded and encoded again.
//!
//! ```text
//! update  := varuint clients, clients x section, deletes
//! section := varuint structs, varuint client, varuint clock, structs x struct
//! struct  := u8 info, origin?, right origin?, parent?, content      one or more consecutive clocks
//! deletes := varuint clients, clients x (varuint client, varuint ranges, ranges x (varuint clock, varuint length))
//! ```
//!
//! Bytes become an [`Update`] by the scan alone, which refuses what no Yjs writer emits and what makes
//! Yjs clients throw: one such update inside a joined answer would cost every reader all of it.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    iter,
    ops::{Bound, Range},
};

use bytes::Bytes;
use serde_json::value::RawValue;
use smallvec::SmallVec;

use crate::{lib0::write_var_uint, message::Carrier};

/// Names a client: a session of an editor, drawn at random by the editor, below 2^53.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(u64);

impl ClientId {
    /// The lowest id.
    pub const MIN: Self = Self(0);

    /// Makes an id; `None` at 2^53 and beyond, which JavaScript cannot count.
    pub const fn new(id: u64) -> Option<Self> {
        if id < NUMBER_END { Some(Self(id)) } else { None }
    }

    /// The id as a number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Says for every client up to which clock its structs are held: the next clock that is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateVector(BTreeMap<ClientId, u64>);

impl StateVector {
    /// Reads an encoded state vector. Nothing may be left over, and a client named twice is refused.
    pub fn decode(bytes: &[u8]) -> Result<Self, UpdateError> {
        let mut reader = Reader { bytes, at: 0 };
        let entries = reader.count(2)?;
        let mut clocks = BTreeMap::new();
        for _ in 0..entries {
            if clocks.insert(reader.client()?, reader.var_uint()?).is_some() {
                return Err(UpdateError::ClientTwice);
            }
        }
        reader.finish()?;
        Ok(Self(clocks))
    }

    /// Writes the state vector, highest client first, as Yjs does.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(1 + 8 * self.0.len());
        write_var_uint(&mut out, self.0.len() as u64);
        for (client, &clock) in self.0.iter().rev() {
            write_var_uint(&mut out, client.0);
            write_var_uint(&mut out, clock);
        }
        out.into()
    }

    /// The first clock of `client` that is missing; 0 for a client that is not known.
    pub fn clock(&self, client: ClientId) -> u64 {
        self.0.get(&client).copied().unwrap_or(0)
    }

    /// The clients and their clocks, lowest client first.
    pub fn iter(&self) -> impl Iterator<Item = (ClientId, u64)> {
        self.0.iter().map(|(&client, &clock)| (client, clock))
    }

    /// Whether no client is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Moves a clock from where it has to be; false where it is not there.
    pub(crate) fn advance(&mut self, client: ClientId, from: u64, to: u64) -> bool {
        match self.0.get_mut(&client) {
            Some(clock) if *clock == from => *clock = to,
            None if from == 0 => self.set(client, to),
            _ => return false,
        }
        true
    }

    pub(crate) fn set(&mut self, client: ClientId, clock: u64) {
        if clock == 0 {
            self.0.remove(&client);
        } else {
            self.0.insert(client, clock);
        }
    }
}

impl FromIterator<(ClientId, u64)> for StateVector {
    fn from_iter<I: IntoIterator<Item = (ClientId, u64)>>(clocks: I) -> Self {
        Self(clocks.into_iter().collect())
    }
}

/// A set of (client, clock) pairs as sorted, merged ranges: what is deleted, for example.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdSet(BTreeMap<ClientId, Ranges>);

impl IdSet {
    /// Adds clocks of a client; false if all of them were there. Logarithmic.
    pub fn insert(&mut self, client: ClientId, clocks: Range<u64>) -> bool {
        !clocks.is_empty() && self.0.entry(client).or_default().insert(clocks)
    }

    /// Takes clocks out; false if none of them was there.
    pub(crate) fn remove_all(&mut self, clocks: impl IntoIterator<Item = (ClientId, Range<u64>)>) -> bool {
        let mut any = false;
        if self.is_empty() {
            return any;
        }
        for (client, clocks) in clocks {
            let Some(ranges) = self.0.get_mut(&client) else { continue };
            any |= ranges.remove(clocks);
            if ranges.0.is_empty() {
                self.0.remove(&client);
            }
        }
        any
    }

    /// Adds all of another set.
    pub fn union(&mut self, other: &Self) {
        for (client, clocks) in other.iter() {
            self.insert(client, clocks);
        }
    }

    /// Whether all of `clocks` are in the set. So are no clocks at all.
    pub fn contains_range(&self, client: ClientId, clocks: Range<u64>) -> bool {
        self.gaps(client, clocks).next().is_none()
    }

    /// The parts of `clocks` that are not in the set, in order.
    pub fn gaps(&self, client: ClientId, clocks: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        static NONE: Ranges = Ranges(BTreeMap::new());
        self.0.get(&client).unwrap_or(&NONE).gaps(clocks)
    }

    /// The ranges, lowest client and clock first.
    pub fn iter(&self) -> impl Iterator<Item = (ClientId, Range<u64>)> {
        self.0
            .iter()
            .flat_map(|(&client, ranges)| ranges.0.iter().map(move |(&from, &to)| (client, from..to)))
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends the set as the deletes of an update, highest client first, as Yjs does.
    fn write(&self, out: &mut Vec<u8>) {
        write_var_uint(out, self.0.len() as u64);
        for (client, ranges) in self.0.iter().rev() {
            write_var_uint(out, client.0);
            write_var_uint(out, ranges.0.len() as u64);
            for (&from, &to) in &ranges.0 {
                write_var_uint(out, from);
                write_var_uint(out, to - from);
            }
        }
    }
}

/// What [`Update::scan`] lets pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanRules {
    /// How deeply JSON and `any` values may nest; 100 by default. yrs stops at 127, and at some
    /// thousands Yjs cannot encode its own document any more.
    pub depth_max: usize,
    /// Whether weak links pass, a type of yrs on which Yjs clients throw; false by default. What a link
    /// quotes is not followed: a reader that lacks it lets the link wait by itself.
    pub weak_links: bool,
    /// The highest clock that a struct, an id or a delete may name; 2^32 - 1 by default. yrs holds no
    /// more, and takes higher ones silently for others; nobody writes so much under one client id.
    pub clock_max: u64,
}

impl Default for ScanRules {
    fn default() -> Self {
        Self { depth_max: 100, weak_links: false, clock_max: u64::from(u32::MAX) }
    }
}

/// A proven update: bytes that passed the [scan](Self::scan), or that the algebra made of such.
///
/// Cloning shares the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    bytes: Bytes,
    /// Where the sections end and the deletes begin.
    deletes_at: usize,
}

impl Update {
    /// Proves bytes to be a well-formed update, in one pass.
    ///
    /// It checks every length against the bytes left, UTF-8, the grammar of JSON, the known kinds of
    /// content and of types, nesting, that no struct is empty or reaches too high a clock, that none depends
    /// on itself or on its own client's future, and that nothing is left over. It allocates only for
    /// updates of many clients or deeply nested values.
    pub fn scan(bytes: Bytes, rules: &ScanRules) -> Result<Self, UpdateError> {
        Self::scan_lone(bytes, rules).map(|(update, _)| update)
    }

    /// As [`scan`](Self::scan); also what was read of a struct that is all that the update says, as of a keystroke.
    pub(crate) fn scan_lone(bytes: Bytes, rules: &ScanRules) -> Result<(Self, Option<Struct>), UpdateError> {
        let mut reader = Reader { bytes: &bytes, at: 0 };
        let lone = reader.prove_sections(rules)?;
        let deletes_at = reader.at;
        reader.prove_deletes(rules)?;
        reader.finish()?;
        let update = Self { bytes, deletes_at };
        let lone = lone.filter(|_| update.has_no_deletes());
        Ok((update, lone))
    }

    /// The encoded update.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Whether the update says nothing at all.
    pub fn is_empty(&self) -> bool {
        // A section is never empty, nor only Skips.
        self.structs().sections == 0 && self.deletes().next().is_none()
    }

    /// The runs of consecutive clocks that the update holds, section by section; a Skip ends a run.
    pub fn inserts(&self) -> impl Iterator<Item = (ClientId, Range<u64>)> {
        self.runs().map(|run| (run.client, run.part))
    }

    /// The ranges that the update deletes, in its own order, which may overlap.
    pub fn deletes(&self) -> impl Iterator<Item = (ClientId, Range<u64>)> {
        let mut reader = self.reader(self.deletes_at);
        let mut clients = reader.proven_var_uint();
        let mut ranges = 0;
        let mut client = ClientId(0);
        iter::from_fn(move || {
            while ranges == 0 {
                clients = clients.checked_sub(1)?;
                client = ClientId(reader.proven_var_uint());
                ranges = reader.proven_var_uint();
            }
            ranges -= 1;
            let from = reader.proven_var_uint();
            Some((client, from..from + reader.proven_var_uint()))
        })
    }

    /// The clocks of structs of which only that they are deleted is left, in the update's own order.
    /// They delete as much as what [`deletes`](Self::deletes) names.
    pub fn gone(&self) -> impl Iterator<Item = (ClientId, Range<u64>)> {
        self.structs().filter(Struct::is_gone).map(|s| (s.id.client, s.clocks()))
    }

    /// Whether the update deletes nothing, as most keystrokes.
    pub(crate) fn has_no_deletes(&self) -> bool {
        self.bytes[self.deletes_at..] == [0]
    }

    /// The structs in their own order, Skips included; those of a client are neighbours.
    pub(crate) fn structs(&self) -> Structs<'_> {
        let mut reader = self.reader(0);
        let sections = reader.proven_var_uint();
        Structs { reader, sections, structs: 0, next: Id { client: ClientId(0), clock: 0 } }
    }

    /// The structs as runs of neighbours.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        let mut structs = self.structs().filter(|s| !s.is_skip()).peekable();
        iter::from_fn(move || {
            let mut run = Run::new(&self.bytes, &structs.next()?);
            while let Some(s) = structs.next_if(|s| run.is_followed_by(s)) {
                run.extend(&s);
            }
            Some(run)
        })
    }

    /// An update of these runs, which must be [laid out](lay), and these deletes.
    pub(crate) fn encode(runs: &[Run<'_>], deletes: &IdSet) -> Self {
        Self::write(runs, copy_section, |out| deletes.write(out))
    }

    /// As [`encode`](Self::encode), in a message; first its frame.
    pub(crate) fn encode_in(carrier: Carrier, runs: &[Run<'_>], deletes: &IdSet) -> (Bytes, Self) {
        let write_deletes = |out: &mut Vec<u8>| deletes.write(out);
        let (out, deletes_at) = Self::write_behind(Carrier::HEAD_LEN_MAX, runs, copy_section, write_deletes);
        let (frame, bytes) = carrier.frame_in_place(out);
        (frame, Self { bytes, deletes_at })
    }

    fn write(
        runs: &[Run<'_>],
        section: impl FnMut(&[Run<'_>], &mut Vec<u8>) -> u64,
        deletes: impl FnOnce(&mut Vec<u8>),
    ) -> Self {
        let (out, deletes_at) = Self::write_behind(0, runs, section, deletes);
        Self { bytes: out.into(), deletes_at }
    }

    /// An update behind so many bytes, and where in it the deletes begin.
    fn write_behind(
        start: usize,
        runs: &[Run<'_>],
        mut section: impl FnMut(&[Run<'_>], &mut Vec<u8>) -> u64,
        deletes: impl FnOnce(&mut Vec<u8>),
    ) -> (Vec<u8>, usize) {
        let of_client = |a: &Run<'_>, b: &Run<'_>| a.client == b.client;
        let clients = runs.chunk_by(of_client).count();
        let structs_len = runs.iter().map(|run| run.at.len()).sum::<usize>();
        let mut out = Vec::with_capacity(start + 16 + clients * SECTION_HEAD_LEN + structs_len);
        out.resize(start, 0);
        let mut body = Vec::new();
        write_var_uint(&mut out, clients as u64);
        for runs in runs.chunk_by(of_client) {
            body.clear();
            let structs = section(runs, &mut body);
            write_var_uint(&mut out, structs);
            write_var_uint(&mut out, runs[0].client.0);
            write_var_uint(&mut out, runs[0].part.start);
            out.extend_from_slice(&body);
        }
        let deletes_at = out.len() - start;
        // Kept for long, it must not keep what a list that doubles has to spare.
        body.clear();
        deletes(&mut body);
        out.reserve_exact(body.len());
        out.extend_from_slice(&body);
        (out, deletes_at)
    }

    fn reader(&self, at: usize) -> Reader<'_> {
        Reader { bytes: &self.bytes, at }
    }
}

impl Default for Update {
    /// The update that says nothing.
    fn default() -> Self {
        Self { bytes: Bytes::from_static(&[0, 0]), deletes_at: 1 }
    }
}

/// Makes one update of several, which says what they say together.
///
/// Where they overlap, the first in the list wins for every clock, and of the others what is not yet
/// covered is taken. Preferring the longer struct, as Yjs does, would let anyone rewrite history for
/// those who join later. What a struct that loses says about deletion is kept.
pub fn join(updates: &[Update]) -> Update {
    if let [update] = updates {
        return update.clone();
    }
    let (runs, deletes) = unite(updates);
    Update::encode(&runs, &deletes)
}

/// [Joins](join) updates in a message; first its frame.
pub(crate) fn join_in(carrier: Carrier, updates: &[Update]) -> (Bytes, Update) {
    let (runs, deletes) = unite(updates);
    Update::encode_in(carrier, &runs, &deletes)
}

/// What `update` holds beyond a state vector, and all of its deletes, of which a state vector says nothing.
///
/// A struct that straddles the known clock is cut: sent whole, it crashes a Yjs 13 reader that holds the
/// known part as garbage beside a living neighbour.
pub fn diff(update: &Update, known: &StateVector) -> Update {
    let mut is_whole = true;
    let runs = update.runs().filter_map(|run| {
        is_whole &= known.clock(run.client) <= run.part.start;
        run.beyond(known)
    });
    let mut runs = runs.collect::<Vec<_>>();
    if is_whole {
        return update.clone();
    }
    runs.sort_by_key(Run::place);
    Update::write(&runs, copy_section, |out| out.extend_from_slice(&update.bytes[update.deletes_at..]))
}

/// How [`squash`] makes updates small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SquashOptions {
    /// Whether deleted content is dropped, true by default; false for applications that show history.
    pub collect: bool,
}

impl Default for SquashOptions {
    fn default() -> Self {
        Self { collect: true }
    }
}

/// [Joins](join) updates and makes the result small: neighbours that Yjs itself would merge become one
/// struct, and content that is deleted goes, if the options say so.
pub fn squash(updates: &[Update], options: SquashOptions) -> Update {
    let (runs, deletes) = unite(updates);
    let mut squasher = Squasher::default();
    let section = |runs: &[Run<'_>], body: &mut Vec<u8>| {
        let deleted = deletes.0.get(&runs[0].client).filter(|_| options.collect);
        squasher.write(runs, deleted, body)
    };
    Update::write(&runs, section, |out| deletes.write(out))
}

/// Says why bytes are no update, or no state vector. The fault is that of who sent them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// The bytes end early, or a length or count says more than there is.
    #[error("the bytes end before what they announce")]
    Truncated,
    /// Bytes follow what is complete.
    #[error("bytes are left over")]
    LeftOver,
    /// A number is 2^53 or more, which JavaScript cannot count.
    #[error("a number is 2^53 or more")]
    NumberTooLarge,
    /// A clock, with the length that follows it, comes to more than [`ScanRules::clock_max`].
    #[error("a clock is too large")]
    ClockTooLarge,
    /// A client has two sections, two entries among the deletes, or two in a state vector.
    #[error("a client appears twice")]
    ClientTwice,
    /// A section holds no struct.
    #[error("a section is empty")]
    EmptySection,
    /// A struct covers no clock.
    #[error("a struct is empty")]
    EmptyStruct,
    /// A range of deletes covers no clock.
    #[error("a range of deletes is empty")]
    EmptyDelete,
    /// A section ends with a Skip.
    #[error("a section ends with a hole")]
    SkipLast,
    /// A GC or Skip struct has flags that only an Item has.
    #[error("a struct without content has the flags of an item")]
    StrayFlags,
    /// The kind of a struct's content is not known.
    #[error("a kind of content is not known")]
    UnknownContent,
    /// The reference of a shared type is not known, or is a weak link where none may be.
    #[error("a shared type is not known")]
    UnknownType,
    /// The tag of an `any` value is not known.
    #[error("a kind of value is not known")]
    UnknownValue,
    /// What says whether the parent is a root is neither 0 nor 1.
    #[error("the kind of a parent is neither 0 nor 1")]
    UnknownParent,
    /// A struct depends on itself or on later structs of its own client.
    #[error("a struct depends on itself or on its own future")]
    OwnFuture,
    /// A text is not UTF-8.
    #[error("a text is not UTF-8")]
    NotUtf8,
    /// A value that must be JSON is not.
    #[error("a value is not JSON")]
    NotJson,
    /// A value nests more deeply than [`ScanRules::depth_max`].
    #[error("a value nests too deeply")]
    TooDeep,
    /// The options of a subdocument are not an object.
    #[error("the options of a subdocument are not an object")]
    DocOptions,
}

/// Names one clock of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    pub(crate) client: ClientId,
    pub(crate) clock: u64,
}

/// What was read of one struct: which clocks it covers, what it depends on, and where its bytes are.
#[derive(Debug, Clone)]
pub(crate) struct Struct {
    pub(crate) id: Id,
    len: u64,
    info: u8,
    /// Where its bytes begin, where its content begins, and where both end.
    at: usize,
    content_at: usize,
    end_at: usize,
    origin: Option<Id>,
    right_origin: Option<Id>,
    parent: Option<Id>,
}

impl Struct {
    /// Reads a struct that was proven.
    pub(crate) fn proven(bytes: &[u8], id: Id) -> Self {
        Reader { bytes, at: 0 }.proven_struct(id)
    }

    /// The clock after its last.
    pub(crate) fn end(&self) -> u64 {
        self.id.clock + self.len
    }

    pub(crate) fn is_skip(&self) -> bool {
        self.info == SKIP
    }

    /// Whether it says of its clocks that they are deleted.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.kind(), GC | DELETED)
    }

    /// Where its bytes are.
    pub(crate) fn at(&self) -> Range<usize> {
        self.at..self.end_at
    }

    /// What must be there before it can be: origin, right origin, parent.
    ///
    /// As in Yjs that goes for the rest of it too, once others have taken its first clocks.
    pub(crate) fn dependencies(&self) -> impl Iterator<Item = Id> {
        [self.origin, self.right_origin, self.parent].into_iter().flatten()
    }

    fn kind(&self) -> u8 {
        self.info & KIND
    }

    fn clocks(&self) -> Range<u64> {
        self.id.clock..self.end()
    }

    /// The info byte of the part from clock `from` on: cut in front, it has an origin and no parent.
    fn info_from(&self, from: u64) -> u8 {
        if from == self.id.clock || self.info == GC {
            return self.info;
        }
        let right_origin = if self.right_origin.is_some() { HAS_RIGHT_ORIGIN } else { 0 };
        self.info & (KIND | HAS_KEY) | HAS_ORIGIN | right_origin
    }

    /// Appends what stands between info byte and content, of the part from clock `from` on.
    fn write_head(&self, source: &[u8], from: u64, out: &mut Vec<u8>) {
        if from == self.id.clock || self.info == GC {
            out.extend_from_slice(&source[self.at + 1..self.content_at]);
            return;
        }
        let origin = Id { client: self.id.client, clock: from - 1 };
        for id in iter::once(origin).chain(self.right_origin) {
            write_var_uint(out, id.client.0);
            write_var_uint(out, id.clock);
        }
    }
}

/// Whether two structs are the same but for the hint that they have a key: `Y.mergeUpdates` and
/// `Y.diffUpdate` drop it where no key is written.
pub(crate) fn is_same_struct(a: &[u8], b: &[u8]) -> bool {
    let (Some((a_info, a)), Some((b_info, b))) = (a.split_first(), b.split_first()) else {
        return false;
    };
    let hint = if a_info & (HAS_ORIGIN | HAS_RIGHT_ORIGIN) == 0 { 0 } else { HAS_KEY };
    a_info | hint == b_info | hint && a == b
}

/// Walks the structs of a proven update.
#[derive(Debug, Clone)]
pub(crate) struct Structs<'a> {
    reader: Reader<'a>,
    sections: u64,
    structs: u64,
    next: Id,
}

impl Iterator for Structs<'_> {
    type Item = Struct;

    fn next(&mut self) -> Option<Struct> {
        if self.structs == 0 {
            self.sections = self.sections.checked_sub(1)?;
            self.structs = self.reader.proven_var_uint();
            self.next.client = ClientId(self.reader.proven_var_uint());
            self.next.clock = self.reader.proven_var_uint();
        }
        self.structs -= 1;
        let s = self.reader.proven_struct(self.next);
        self.next.clock = s.end();
        Some(s)
    }
}

/// Structs of one client that follow each other in some bytes, and which of their clocks are taken.
///
/// Joining works on runs, not on structs: a run that is taken whole is copied as it is.
#[derive(Debug, Clone)]
pub(crate) struct Run<'a> {
    source: &'a [u8],
    at: Range<usize>,
    structs: u64,
    client: ClientId,
    clocks: Range<u64>,
    part: Range<u64>,
    /// Its place in the order of arrival, once it is [laid out](lay).
    arrival: usize,
}

impl<'a> Run<'a> {
    /// A run of one struct.
    pub(crate) fn new(source: &'a [u8], s: &Struct) -> Self {
        let (client, clocks) = (s.id.client, s.clocks());
        Self { source, at: s.at(), structs: 1, client, part: clocks.clone(), clocks, arrival: 0 }
    }

    pub(crate) fn client(&self) -> ClientId {
        self.client
    }

    /// Without the clocks that a state vector covers; `None` if nothing remains.
    pub(crate) fn beyond(self, known: &StateVector) -> Option<Self> {
        let from = known.clock(self.client);
        self.starting_at(from)
    }

    /// Whether it has clocks that a state vector does not cover.
    pub(crate) fn is_beyond(&self, known: &StateVector) -> bool {
        self.part.end > known.clock(self.client)
    }

    /// Without the clocks below `from`; `None` if nothing remains.
    pub(crate) fn starting_at(mut self, from: u64) -> Option<Self> {
        self.part.start = self.part.start.max(from);
        (!self.part.is_empty()).then_some(self)
    }

    /// Without the clocks from `to` on; `None` if nothing remains.
    pub(crate) fn ending_at(mut self, to: u64) -> Option<Self> {
        self.part.end = self.part.end.min(to);
        (!self.part.is_empty()).then_some(self)
    }

    /// Where it stands in an update: highest client first.
    pub(crate) fn place(&self) -> (Reverse<ClientId>, u64) {
        (Reverse(self.client), self.part.start)
    }

    fn is_followed_by(&self, s: &Struct) -> bool {
        self.at.end == s.at && self.client == s.id.client && self.clocks.end == self.part.end
    }

    fn extend(&mut self, s: &Struct) {
        self.at.end = s.end_at;
        self.structs += 1;
        self.clocks.end = s.end();
        self.part.end = s.end();
    }

    /// Whether `other` is of the same client and begins before clock `end`.
    fn reaches(&self, other: &Self, end: u64) -> bool {
        self.client == other.client && other.part.start < end
    }

    /// Appends what of the run is not covered, in as few pieces as it allows.
    ///
    /// What the rest says is deleted is added to `lost`.
    fn take_gaps(&self, covered: &Ranges, laid: &mut Vec<Self>, lost: &mut Ranges) {
        let begin = laid.len();
        for (s, part) in self.parts() {
            let mut taken = 0;
            for gap in covered.gaps(part.clone()) {
                taken += gap.end - gap.start;
                match laid[begin..].last_mut() {
                    Some(piece) if gap == s.clocks() && piece.is_followed_by(&s) => piece.extend(&s),
                    _ => laid.push(Self { part: gap, ..Self::new(self.source, &s) }),
                }
            }
            if s.is_gone() && taken < part.end - part.start {
                lost.insert(part);
            }
        }
    }

    /// The structs that are taken, each with the part of it that is.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (Struct, Range<u64>)> {
        let mut reader = Reader { bytes: self.source, at: self.at.start };
        let mut id = Id { client: self.client, clock: self.clocks.start };
        iter::from_fn(move || {
            while reader.at < self.at.end && id.clock < self.part.end {
                let s = reader.proven_struct(id);
                id.clock = s.end();
                let part = s.id.clock.max(self.part.start)..s.end().min(self.part.end);
                if !part.is_empty() {
                    return Some((s, part));
                }
            }
            None
        })
    }
}

/// Sorts runs as an update has them and takes every clock from the first run that has it.
///
/// Where a struct that says that its clocks are deleted gives way to another, `deletes` says it instead.
fn lay<'a>(mut runs: Vec<Run<'a>>, deletes: &mut IdSet) -> Vec<Run<'a>> {
    for (arrival, run) in runs.iter_mut().enumerate() {
        run.arrival = arrival;
    }
    runs.sort_by_key(Run::place);
    if runs.is_sorted_by(|a, b| !a.reaches(b, a.part.end)) {
        return runs;
    }
    let mut laid = Vec::with_capacity(runs.len());
    let mut rest = &mut runs[..];
    while let Some(first) = rest.first() {
        // A cluster: runs that hang together by overlapping.
        let mut end = first.part.end;
        let mut count = 1;
        while let Some(run) = rest.get(count).filter(|run| first.reaches(run, end)) {
            end = end.max(run.part.end);
            count += 1;
        }
        let (cluster, others) = rest.split_at_mut(count);
        cluster.sort_by_key(|run| run.arrival);
        let cluster_at = laid.len();
        let (mut covered, mut lost) = (Ranges::default(), Ranges::default());
        for run in cluster {
            if covered.gaps(run.part.clone()).next().as_ref() == Some(&run.part) {
                laid.push(run.clone());
            } else {
                run.take_gaps(&covered, &mut laid, &mut lost);
            }
            covered.insert(run.part.clone());
        }
        let laid = &mut laid[cluster_at..];
        laid.sort_by_key(Run::place);
        if !lost.0.is_empty() {
            for (s, part) in laid.iter().flat_map(Run::parts).filter(|(s, _)| !s.is_gone()) {
                lost.covered(part).for_each(|clocks| _ = deletes.insert(s.id.client, clocks));
            }
        }
        rest = others;
    }
    laid
}

/// What updates insert, [laid out](lay), and what they delete.
fn unite(updates: &[Update]) -> (Vec<Run<'_>>, IdSet) {
    let mut deletes = IdSet::default();
    for (client, clocks) in updates.iter().flat_map(Update::deletes) {
        deletes.insert(client, clocks);
    }
    let runs = lay(updates.iter().flat_map(Update::runs).collect(), &mut deletes);
    (runs, deletes)
}

/// Writes the structs of one client, with a Skip for every hole, and says how many.
fn copy_section(runs: &[Run<'_>], out: &mut Vec<u8>) -> u64 {
    let mut structs = 0;
    let mut next = runs[0].part.start;
    for run in runs {
        structs += write_skip(next..run.part.start, out);
        next = run.part.end;
        if run.part == run.clocks {
            out.extend_from_slice(&run.source[run.at.clone()]);
            structs += run.structs;
            continue;
        }
        for (s, part) in run.parts() {
            structs += 1;
            if part == s.clocks() {
                out.extend_from_slice(&run.source[s.at()]);
                continue;
            }
            out.push(s.info_from(part.start));
            s.write_head(run.source, part.start, out);
            let mut content = Vec::new();
            Content::new(run.source, &s).take(part.clone(), &mut content);
            write_content(s.kind(), part.end - part.start, &content, out);
        }
    }
    structs
}

fn write_skip(hole: Range<u64>, out: &mut Vec<u8>) -> u64 {
    if hole.is_empty() {
        return 0;
    }
    out.push(SKIP);
    write_var_uint(out, hole.end - hole.start);
    1
}

/// Appends content, with the length in front that its kind demands.
fn write_content(kind: u8, len: u64, content: &[u8], out: &mut Vec<u8>) {
    match kind {
        GC | DELETED | JSON | ANY => write_var_uint(out, len),
        STRING => write_var_uint(out, content.len() as u64),
        _ => {}
    }
    out.extend_from_slice(content);
}

/// Writes structs, joining each to the one before where Yjs itself would.
///
/// The struct that may still grow is kept open; its head and content are collected in buffers that all
/// structs share.
#[derive(Default)]
struct Squasher {
    open: Option<Open>,
    head: Vec<u8>,
    content: Vec<u8>,
    structs: u64,
}

/// The struct that may still grow.
struct Open {
    info: u8,
    kind: u8,
    clocks: Range<u64>,
    right_origin: Option<Id>,
}

impl Squasher {
    /// Writes the structs of one client and says how many.
    fn write(&mut self, runs: &[Run<'_>], deleted: Option<&Ranges>, out: &mut Vec<u8>) -> u64 {
        self.structs = 0;
        let mut next = runs[0].part.start;
        for run in runs {
            if next < run.part.start {
                self.flush(out);
                self.structs += write_skip(next..run.part.start, out);
            }
            next = run.part.end;
            for (s, part) in run.parts() {
                self.push(run.source, &s, part, deleted, out);
            }
        }
        self.flush(out);
        self.structs
    }

    /// Takes the next struct, in parts where it is partly deleted.
    fn push(
        &mut self,
        source: &[u8],
        s: &Struct,
        part: Range<u64>,
        deleted: Option<&Ranges>,
        out: &mut Vec<u8>,
    ) {
        let mut content = Content::new(source, s);
        // Types and subdocuments stay: their children name them as parent.
        let is_leaf = matches!(s.kind(), JSON..=FORMAT | ANY);
        let deleted = deleted.filter(|deleted| is_leaf && !content.is_split_by(deleted, &part));
        let mut from = part.start;
        for clocks in deleted.into_iter().flat_map(|deleted| deleted.covered(part.clone())) {
            if from < clocks.start {
                self.push_part(source, s, s.kind(), from..clocks.start, &mut content, out);
            }
            from = clocks.end;
            self.push_part(source, s, DELETED, clocks, &mut content, out);
        }
        if from < part.end {
            self.push_part(source, s, s.kind(), from..part.end, &mut content, out);
        }
    }

    fn push_part(
        &mut self,
        source: &[u8],
        s: &Struct,
        kind: u8,
        part: Range<u64>,
        content: &mut Content<'_>,
        out: &mut Vec<u8>,
    ) {
        let info = s.info_from(part.start) & !KIND | kind;
        match &mut self.open {
            Some(open) if open.is_joined_by(info, s, &part) => open.clocks.end = part.end,
            _ => {
                self.flush(out);
                s.write_head(source, part.start, &mut self.head);
                self.open = Some(Open { info, kind, clocks: part.clone(), right_origin: s.right_origin });
            }
        }
        if kind == s.kind() {
            content.take(part, &mut self.content);
        }
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        let Some(open) = self.open.take() else {
            return;
        };
        out.push(open.info);
        out.append(&mut self.head);
        write_content(open.kind, open.clocks.end - open.clocks.start, &self.content, out);
        self.content.clear();
        self.structs += 1;
    }
}

impl Open {
    /// Whether `part` of `s`, which follows at once, is what cutting the whole in two would leave.
    ///
    /// The two need equal right origins: they tell where the whole stands among concurrent insertions.
    fn is_joined_by(&self, info: u8, s: &Struct, part: &Range<u64>) -> bool {
        if self.clocks.end != part.start || self.kind != info & KIND {
            return false;
        }
        let last = Id { client: s.id.client, clock: part.start - 1 };
        let hangs_on_last = part.start > s.id.clock || s.origin == Some(last);
        match self.kind {
            GC => true,
            DELETED | JSON | STRING | ANY => {
                hangs_on_last && self.right_origin == s.right_origin && (self.info | info) & HAS_KEY == 0
            }
            _ => false,
        }
    }
}

/// Walks the content of a struct forward, clock by clock, to cut it.
#[derive(Clone)]
struct Content<'a> {
    /// Stands at the content of `clock`; its bytes end with the struct.
    reader: Reader<'a>,
    kind: u8,
    clock: u64,
    end: u64,
}

impl<'a> Content<'a> {
    fn new(source: &'a [u8], s: &Struct) -> Self {
        let mut reader = Reader { bytes: &source[..s.end_at], at: s.content_at };
        if matches!(s.kind(), GC | DELETED | JSON | STRING | ANY) {
            reader.proven_var_uint();
        }
        Self { reader, kind: s.kind(), clock: s.id.clock, end: s.end() }
    }

    /// Appends the content of `part`, which must not lie before what was taken last.
    ///
    /// Where that splits a surrogate pair, each half becomes U+FFFD, as in Yjs.
    fn take(&mut self, part: Range<u64>, out: &mut Vec<u8>) {
        if self.seek(part.start) {
            out.extend_from_slice(REPLACEMENT);
            self.clock += 2;
            self.reader.at += 4;
        }
        let from = self.reader.at;
        let splits_pair = self.seek(part.end);
        out.extend_from_slice(&self.reader.bytes[from..self.reader.at]);
        if splits_pair {
            out.extend_from_slice(REPLACEMENT);
        }
    }

    /// Goes forward to a clock. If that is the second half of a surrogate pair, it stops before the
    /// pair and says true.
    fn seek(&mut self, clock: u64) -> bool {
        if clock == self.end {
            (self.clock, self.reader.at) = (clock, self.reader.bytes.len());
        }
        while self.clock < clock {
            match self.kind {
                STRING => {
                    let (units, width) = match self.reader.bytes[self.reader.at] {
                        0..0x80 => (1, 1),
                        0x80..0xe0 => (1, 2),
                        0xe0..0xf0 => (1, 3),
                        0xf0.. => (2, 4),
                    };
                    if self.clock + units > clock {
                        return true;
                    }
                    self.reader.at += width;
                    self.clock += units - 1;
                }
                JSON => _ = self.reader.var_bytes().expect(PROVEN),
                ANY => self.reader.any::<false>(&ScanRules::PROVEN).expect(PROVEN),
                // Deleted and GC have no content, all others cover one clock.
                _ => self.clock = clock - 1,
            }
            self.clock += 1;
        }
        false
    }

    /// Whether `deleted` misses `part`, or parts the halves of a surrogate pair in it: the whole stays.
    fn is_split_by(&self, deleted: &Ranges, part: &Range<u64>) -> bool {
        let mut gaps = deleted.gaps(part.clone()).peekable();
        let mut content = self.clone();
        gaps.peek() == Some(part)
            || self.kind == STRING
                && gaps
                    .flat_map(|gap| [gap.start, gap.end])
                    .any(|border| part.start < border && border < part.end && content.seek(border))
    }
}

/// Sorted ranges that neither overlap nor touch: the start of each and its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a range and merges what it touches; false if all of it was there.
    fn insert(&mut self, mut range: Range<u64>) -> bool {
        if let Some((&start, end)) = self.0.range_mut(..=range.start).next_back()
            && *end >= range.start
        {
            if *end >= range.end {
                return false;
            }
            range.start = start;
        }
        while let Some((&start, &end)) = self.0.range(range.start..=range.end).next_back() {
            range.end = range.end.max(end);
            if start == range.start {
                break;
            }
            self.0.remove(&start);
        }
        self.0.insert(range.start, range.end);
        true
    }

    /// Takes a range out; false if nothing of it was there.
    fn remove(&mut self, range: Range<u64>) -> bool {
        let covered: SmallVec<[Range<u64>; 1]> = self.covered(range).collect();
        for part in &covered {
            // What is covered without a gap is one range, which may reach beyond on both sides.
            let (&start, &end) = self.0.range(..=part.start).next_back().expect("it is covered");
            self.0.remove(&start);
            if start < part.start {
                self.0.insert(start, part.start);
            }
            if part.end < end {
                self.0.insert(part.end, end);
            }
        }
        !covered.is_empty()
    }

    /// The parts of `range` that are covered, in order.
    fn covered(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let mut from = range.start;
        let end = iter::once(range.end..range.end);
        self.gaps(range).chain(end).filter_map(move |gap| {
            let covered = from..gap.start;
            from = gap.end;
            (!covered.is_empty()).then_some(covered)
        })
    }

    /// The parts of `range` that are not covered, in order.
    fn gaps(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let before = self.0.range(..=range.start).next_back();
        let mut from = before.map_or(range.start, |(_, &end)| end.max(range.start));
        let mut ranges =
            self.0.range((Bound::Excluded(range.start), Bound::Excluded(range.end.max(range.start + 1))));
        iter::from_fn(move || {
            while from < range.end {
                let (start, end) =
                    ranges.next().map_or((range.end, range.end), |(&start, &end)| (start, end));
                let gap = from..start;
                from = end;
                if !gap.is_empty() {
                    return Some(gap);
                }
            }
            None
        })
    }
}

/// Reads an update. What ends early, or is no number that JavaScript has, is an error.
///
/// The methods with `PROVE` are used twice: with it to prove bytes, without it to walk proven ones.
#[derive(Debug, Clone)]
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Gives the struct, where there is but one.
    fn prove_sections(&mut self, rules: &ScanRules) -> Result<Option<Struct>, UpdateError> {
        let sections = self.count(SECTION_LEN_MIN)?;
        let mut clients = Clients::default();
        let mut lone = None;
        for _ in 0..sections {
            let structs = self.count(STRUCT_LEN_MIN)?;
            if structs == 0 {
                return Err(UpdateError::EmptySection);
            }
            let mut id = Id { client: self.client()?, clock: self.var_uint()? };
            clients.push(id.client);
            for index in 0..structs {
                let s = self.structure::<true>(id, rules)?;
                // A document of yrs that holds what lies beyond a gap writes a hole first.
                if s.is_skip() && index + 1 == structs {
                    return Err(UpdateError::SkipLast);
                }
                id.clock = s.end();
                if sections == 1 && structs == 1 {
                    lone = Some(s);
                }
            }
        }
        clients.finish()?;
        Ok(lone)
    }

    fn prove_deletes(&mut self, rules: &ScanRules) -> Result<(), UpdateError> {
        let entries = self.count(2)?;
        let mut clients = Clients::default();
        for _ in 0..entries {
            clients.push(self.client()?);
            for _ in 0..self.count(2)? {
                let (clock, len) = (self.var_uint()?, self.var_uint()?);
                if len == 0 {
                    return Err(UpdateError::EmptyDelete);
                }
                if clock + len > rules.clock_max {
                    return Err(UpdateError::ClockTooLarge);
                }
            }
        }
        clients.finish()
    }

    #[inline]
    fn structure<const PROVE: bool>(&mut self, id: Id, rules: &ScanRules) -> Result<Struct, UpdateError> {
        let at = self.at;
        let info = self.u8()?;
        let kind = info & KIND;
        let (mut origin, mut right_origin, mut parent) = (None, None, None);
        if matches!(kind, GC | SKIP) {
            if info != kind {
                return Err(UpdateError::StrayFlags);
            }
        } else {
            if info & HAS_ORIGIN != 0 {
                origin = Some(self.id()?);
            }
            if info & HAS_RIGHT_ORIGIN != 0 {
                right_origin = Some(self.id()?);
            }
            if info & (HAS_ORIGIN | HAS_RIGHT_ORIGIN) == 0 {
                match self.var_uint()? {
                    0 => parent = Some(self.id()?),
                    1 => self.text::<PROVE>()?,
                    _ => return Err(UpdateError::UnknownParent),
                }
                if info & HAS_KEY != 0 {
                    self.text::<PROVE>()?;
                }
            }
        }
        if PROVE {
            let is_future = |other: &Id| other.client == id.client && other.clock >= id.clock;
            let ids = [origin, right_origin, parent];
            if ids.iter().flatten().any(is_future) {
                return Err(UpdateError::OwnFuture);
            }
            if ids.iter().flatten().any(|id| id.clock > rules.clock_max) {
                return Err(UpdateError::ClockTooLarge);
            }
        }
        let content_at = self.at;
        let len = self.content::<PROVE>(kind, rules)?;
        if len == 0 {
            return Err(UpdateError::EmptyStruct);
        }
        if id.clock + len > rules.clock_max {
            return Err(UpdateError::ClockTooLarge);
        }
        Ok(Struct { id, len, info, at, content_at, end_at: self.at, origin, right_origin, parent })
    }

    /// Reads content and says how many clocks it covers.
    #[inline]
    fn content<const PROVE: bool>(&mut self, kind: u8, rules: &ScanRules) -> Result<u64, UpdateError> {
        match kind {
            GC | DELETED | SKIP => return self.var_uint(),
            STRING => {
                let text = self.var_bytes()?;
                if PROVE {
                    prove_utf8(text)?;
                }
                return Ok(utf16_len(text));
            }
            JSON => {
                let values = self.count(1)?;
                for _ in 0..values {
                    let text = self.var_bytes()?;
                    if PROVE && text != b"undefined" {
                        prove_json(text, rules.depth_max)?;
                    }
                }
                return Ok(values);
            }
            ANY => {
                let values = self.count(1)?;
                for _ in 0..values {
                    self.any::<PROVE>(rules)?;
                }
                return Ok(values);
            }
            BINARY => _ = self.var_bytes()?,
            EMBED | FORMAT => {
                if kind == FORMAT {
                    self.text::<PROVE>()?;
                }
                let text = self.var_bytes()?;
                if PROVE {
                    prove_json(text, rules.depth_max)?;
                }
            }
            TYPE => match self.var_uint()? {
                TYPE_XML_ELEMENT | TYPE_XML_HOOK => self.text::<PROVE>()?,
                0..=TYPE_LAST => {}
                TYPE_WEAK_LINK if rules.weak_links => self.weak_link::<PROVE>()?,
                _ => return Err(UpdateError::UnknownType),
            },
            DOC => {
                self.text::<PROVE>()?;
                if PROVE && self.bytes.get(self.at).is_some_and(|&tag| tag != ANY_OBJECT) {
                    return Err(UpdateError::DocOptions);
                }
                self.any::<PROVE>(rules)?;
            }
            _ => return Err(UpdateError::UnknownContent),
        }
        Ok(1)
    }

    /// Reads a value, with the open arrays and objects on a stack of its own.
    fn any<const PROVE: bool>(&mut self, rules: &ScanRules) -> Result<(), UpdateError> {
        // How many entries each open array or object still has, and whether they have names.
        let mut open = SmallVec::<[(u64, bool); 8]>::new();
        loop {
            match self.u8()? {
                ANY_UNDEFINED | ANY_NULL | ANY_FALSE | ANY_TRUE => {}
                ANY_INTEGER => self.var_int()?,
                ANY_F32 => _ = self.take(4)?,
                ANY_F64 | ANY_BIGINT => _ = self.take(8)?,
                ANY_STRING => self.text::<PROVE>()?,
                ANY_BYTES => _ = self.var_bytes()?,
                tag @ (ANY_OBJECT | ANY_ARRAY) => {
                    if open.len() >= rules.depth_max {
                        return Err(UpdateError::TooDeep);
                    }
                    let is_object = tag == ANY_OBJECT;
                    open.push((self.count(if is_object { 2 } else { 1 })?, is_object));
                }
                _ => return Err(UpdateError::UnknownValue),
            }
            loop {
                match open.last_mut() {
                    None => return Ok(()),
                    Some((0, _)) => _ = open.pop(),
                    Some((entries, is_object)) => {
                        *entries -= 1;
                        if *is_object {
                            self.text::<PROVE>()?;
                        }
                        break;
                    }
                }
            }
        }
    }

    /// Reads the weak link of yrs: where the quote starts and ends, each an id or the name of a root.
    fn weak_link<const PROVE: bool>(&mut self) -> Result<(), UpdateError> {
        let flags = self.u8()?;
        for unbounded in [WEAK_START_UNBOUNDED, WEAK_END_UNBOUNDED] {
            let is_unbounded = flags & unbounded != 0;
            if is_unbounded && flags & WEAK_ROOT != 0 {
                self.text::<PROVE>()?;
            } else if is_unbounded || unbounded == WEAK_START_UNBOUNDED || flags & WEAK_QUOTE != 0 {
                self.id()?;
            }
        }
        Ok(())
    }

    fn id(&mut self) -> Result<Id, UpdateError> {
        Ok(Id { client: self.client()?, clock: self.var_uint()? })
    }

    fn client(&mut self) -> Result<ClientId, UpdateError> {
        Ok(ClientId(self.var_uint()?))
    }

    fn text<const PROVE: bool>(&mut self) -> Result<(), UpdateError> {
        let text = self.var_bytes()?;
        if PROVE { prove_utf8(text) } else { Ok(()) }
    }

    /// Reads how many things follow, each of which takes `len_min` bytes at least.
    fn count(&mut self, len_min: usize) -> Result<u64, UpdateError> {
        let count = self.var_uint()?;
        if count > ((self.bytes.len() - self.at) / len_min) as u64 {
            return Err(UpdateError::Truncated);
        }
        Ok(count)
    }

    fn var_bytes(&mut self) -> Result<&'a [u8], UpdateError> {
        let len = self.var_uint()?;
        self.take(usize::try_from(len).map_err(|_| UpdateError::Truncated)?)
    }

    #[inline]
    fn var_uint(&mut self) -> Result<u64, UpdateError> {
        let first = self.u8()?;
        if first < 0x80 { Ok(first.into()) } else { self.var_uint_rest((first & 0x7f).into(), 7) }
    }

    /// Reads an integer of `any`, whose first byte has a sign and six bits.
    fn var_int(&mut self) -> Result<(), UpdateError> {
        let first = self.u8()?;
        if first >= 0x80 {
            self.var_uint_rest((first & 0x3f).into(), 6)?;
        }
        Ok(())
    }

    fn var_uint_rest(&mut self, mut value: u64, mut shift: u32) -> Result<u64, UpdateError> {
        for (index, byte) in self.bytes[self.at..].iter().enumerate() {
            // Beyond 2^53, or padded beyond what any writer emits.
            if shift > 49 {
                return Err(UpdateError::NumberTooLarge);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                self.at += index + 1;
                return if value < NUMBER_END { Ok(value) } else { Err(UpdateError::NumberTooLarge) };
            }
            shift += 7;
        }
        Err(UpdateError::Truncated)
    }

    #[inline]
    fn u8(&mut self) -> Result<u8, UpdateError> {
        let byte = *self.bytes.get(self.at).ok_or(UpdateError::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<&'a [u8], UpdateError> {
        let taken = self.bytes[self.at..].get(..len).ok_or(UpdateError::Truncated)?;
        self.at += len;
        Ok(taken)
    }

    fn finish(&self) -> Result<(), UpdateError> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(UpdateError::LeftOver) }
    }

    fn proven_var_uint(&mut self) -> u64 {
        self.var_uint().expect(PROVEN)
    }

    #[inline]
    fn proven_struct(&mut self, id: Id) -> Struct {
        self.structure::<false>(id, &ScanRules::PROVEN).expect(PROVEN)
    }
}

impl ScanRules {
    /// For bytes that passed under whatever rules.
    const PROVEN: Self = Self { depth_max: usize::MAX, weak_links: true, clock_max: u64::MAX };
}

/// Finds clients that appear twice. Writers sort them, so that comparing neighbours mostly suffices.
#[derive(Default)]
struct Clients(SmallVec<[ClientId; 8]>);

impl Clients {
    fn push(&mut self, client: ClientId) {
        self.0.push(client);
    }

    fn finish(mut self) -> Result<(), UpdateError> {
        if !self.0.is_sorted_by(|a, b| a > b) {
            self.0.sort_unstable();
            if !self.0.is_sorted_by(|a, b| a < b) {
                return Err(UpdateError::ClientTwice);
            }
        }
        Ok(())
    }
}

#[inline]
fn prove_utf8(text: &[u8]) -> Result<(), UpdateError> {
    if text.is_ascii() || std::str::from_utf8(text).is_ok() { Ok(()) } else { Err(UpdateError::NotUtf8) }
}

/// The length of a UTF-8 text in UTF-16 units, in which Yjs counts.
fn utf16_len(text: &[u8]) -> u64 {
    let units = text.iter().map(|&byte| usize::from(byte & 0xc0 != 0x80) + usize::from(byte >= 0xf0));
    units.sum::<usize>() as u64
}

/// Proves a text to be JSON by its grammar, without decoding it: real documents hold lone surrogate
/// escapes, numbers beyond every range and names that appear twice.
pub(crate) fn prove_json(text: &[u8], depth_max: usize) -> Result<(), UpdateError> {
    let text = std::str::from_utf8(text).map_err(|_| UpdateError::NotUtf8)?;
    if nesting(text) > depth_max {
        return Err(UpdateError::TooDeep);
    }
    // Skips values without recursion, and sets no limit of its own.
    serde_json::from_str::<&RawValue>(text).map(drop).map_err(|_| UpdateError::NotJson)
}

/// How deeply arrays and objects nest in a text, if that is JSON.
fn nesting(text: &str) -> usize {
    let (mut open, mut deepest, mut in_string) = (0usize, 0, false);
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => in_string = !in_string,
            b'\\' if in_string => _ = bytes.next(),
            b'[' | b'{' if !in_string => {
                open += 1;
                deepest = deepest.max(open);
            }
            b']' | b'}' if !in_string => open = open.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Why reading cannot fail: the same reader proved the same bytes, or the algebra wrote them.
const PROVEN: &str = "a proven update reads back";

/// One more than the largest integer of JavaScript that is safe.
const NUMBER_END: u64 = 1 << 53;

/// What the number of structs, a random client and a clock mostly take.
const SECTION_HEAD_LEN: usize = 12;

/// Counts of a struct and a client, a clock, and one struct.
const SECTION_LEN_MIN: usize = 3 + STRUCT_LEN_MIN;
/// An info byte and a length.
const STRUCT_LEN_MIN: usize = 2;

/// U+FFFD, which stands for half of a surrogate pair.
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

// The info byte of a struct.
const KIND: u8 = 0b0001_1111;
const HAS_KEY: u8 = 0b0010_0000;
const HAS_RIGHT_ORIGIN: u8 = 0b0100_0000;
const HAS_ORIGIN: u8 = 0b1000_0000;

// The kinds of structs and content.
const GC: u8 = 0;
const DELETED: u8 = 1;
const JSON: u8 = 2;
const BINARY: u8 = 3;
const STRING: u8 = 4;
const EMBED: u8 = 5;
const FORMAT: u8 = 6;
const TYPE: u8 = 7;
const ANY: u8 = 8;
const DOC: u8 = 9;
const SKIP: u8 = 10;

// The types with a name, the last one that Yjs knows, and one that only yrs knows.
const TYPE_XML_ELEMENT: u64 = 3;
const TYPE_XML_HOOK: u64 = 5;
const TYPE_LAST: u64 = 6;
const TYPE_WEAK_LINK: u64 = 7;

// The flags of a weak link.
const WEAK_QUOTE: u8 = 0b00_0001;
const WEAK_START_UNBOUNDED: u8 = 0b00_1000;
const WEAK_END_UNBOUNDED: u8 = 0b01_0000;
const WEAK_ROOT: u8 = 0b10_0000;

// The tags of `any` values.
const ANY_BYTES: u8 = 116;
const ANY_ARRAY: u8 = 117;
const ANY_OBJECT: u8 = 118;
const ANY_STRING: u8 = 119;
const ANY_TRUE: u8 = 120;
const ANY_FALSE: u8 = 121;
const ANY_BIGINT: u8 = 122;
const ANY_F64: u8 = 123;
const ANY_F32: u8 = 124;
const ANY_INTEGER: u8 = 125;
const ANY_NULL: u8 = 126;
const ANY_UNDEFINED: u8 = 127;
