use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake},
};

/// Calls one task, or one thread, that waits for it; a call that finds nobody waiting is kept.
///
/// A task waits by [`Bell::poll`]; a thread by the same, with a waker that unparks it.
#[derive(Debug, Default)]
pub struct Bell(Mutex<Rung>);

#[derive(Debug, Default)]
struct Rung {
    is_rung: bool,
    waiting: Option<std::task::Waker>,
}

impl Bell {
    /// Calls; never waits, and may be called often.
    pub fn ring(&self) {
        let waiting = {
            let mut rung = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            rung.is_rung = true;
            rung.waiting.take()
        };
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }

    /// Waits for a call. Only who polled last is called.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut rung = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut rung.is_rung) {
            return Poll::Ready(());
        }
        rung.waiting = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}
