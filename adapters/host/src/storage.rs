use std::sync::Arc;

use yrs_websocket::{Input, Output, RoomName, journal::Squashed};
use yrs_websocket_store::{self as store, Job, Request, Store, StoreThread, Write};

use crate::Completion;

/// Where a host keeps documents.
pub enum Storage {
    /// A store on a thread of its own, shared by all hosts; the number says which host asks. Its
    /// completions are brought back by [`Host::completed`](crate::Host::completed).
    Thread(Arc<StoreThread<usize, Squashed>>, usize),
    /// A store of this host alone that answers at once, without system calls: memory. The number says
    /// which host it is.
    Inline(Box<dyn Store>, usize),
    /// Anything else that takes requests, in order, and answers later by
    /// [`Host::completed`](crate::Host::completed): a store of the application's own runtime, or a
    /// simulated disk. The number says which host it is.
    Outside(Box<dyn FnMut(Request<Squashed>) + Send>, usize),
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Thread(..) => "Storage::Thread",
            Self::Inline(..) => "Storage::Inline",
            Self::Outside(..) => "Storage::Outside",
        })
    }
}

impl Storage {
    /// Performs an output of the core; says what came of it if that is known at once.
    pub(crate) fn perform(&mut self, output: Output) -> Option<Completion> {
        let request = match output {
            Output::Load { room } => Request::Load(room),
            Output::Append { room, seq, update } => Request::Append { room, seq, update },
            Output::Compact { room, seq, squash } => {
                let job = Job::new(move || {
                    let squashed = squash.run();
                    (squashed.updates().cloned().collect(), squashed)
                });
                Request::Compact { room, seq, job }
            }
            Output::Send { .. } | Output::Close { .. } | Output::Event(_) => return None,
        };
        self.submit(request)
    }

    /// The number of the host.
    pub(crate) fn shard(&self) -> usize {
        match self {
            Self::Thread(_, shard) | Self::Inline(_, shard) | Self::Outside(_, shard) => *shard,
        }
    }

    pub(crate) fn unload(&mut self, room: RoomName) {
        let _ = self.submit(Request::Unload(room));
    }

    fn submit(&mut self, request: Request<Squashed>) -> Option<Completion> {
        let store = match self {
            Self::Thread(thread, tag) => {
                thread.submit(*tag, request);
                return None;
            }
            Self::Outside(submit, _) => {
                submit(request);
                return None;
            }
            Self::Inline(store, _) => store,
        };
        Some(match request {
            Request::Load(room) => match store.load(&room) {
                Ok(updates) => store::Completion::Loaded { room, updates },
                Err(error) => store::Completion::LoadFailed { room, error },
            },
            Request::Append { room, seq, update } => {
                match store.commit(&[Write::Append { room: room.clone(), seq, update }]) {
                    Ok(()) => store::Completion::Stored { room, seq },
                    Err(error) => store::Completion::Failed { room, seq, error },
                }
            }
            Request::Compact { room, seq, job } => {
                let (state, done) = job.run();
                match store.commit(&[Write::Compact { room: room.clone(), seq, state }]) {
                    Ok(()) => store::Completion::Compacted { room, seq, done },
                    Err(error) => store::Completion::Failed { room, seq, error },
                }
            }
            Request::Unload(room) => {
                store.unload(&room);
                return None;
            }
        })
    }
}

/// What a completion means to the core.
pub(crate) fn input(completion: Completion) -> Input {
    match completion {
        store::Completion::Loaded { room, updates } => Input::Loaded { room, updates },
        store::Completion::LoadFailed { room, .. } => Input::LoadFailed { room },
        store::Completion::Stored { room, seq } => Input::Stored { room, seq },
        store::Completion::Compacted { room, seq, done } => Input::Compacted { room, seq, squashed: done },
        store::Completion::Failed { room, seq, .. } => Input::StoreFailed { room, seq },
    }
}
