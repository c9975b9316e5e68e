use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    task::{Context, Poll, Wake},
    time::Duration,
};

/// Calls one task, or one thread, that waits for it; a call that finds nobody waiting is kept.
///
/// A task waits by [`Bell::poll`], a thread by [`Bell::wait`].
#[derive(Debug, Default)]
pub struct Bell {
    rung: Mutex<Rung>,
    threads: Condvar,
}

#[derive(Debug, Default)]
struct Rung {
    is_rung: bool,
    waiting: Option<std::task::Waker>,
    /// How many threads wait: to call nobody costs a system call as well.
    threads: usize,
}

impl Bell {
    /// Calls; never waits, and may be called often.
    pub fn ring(&self) {
        let (waiting, threads) = {
            let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
            rung.is_rung = true;
            (rung.waiting.take(), rung.threads)
        };
        if threads > 0 {
            self.threads.notify_one();
        }
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }

    /// Waits for a call. Only who polled last is called.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut rung.is_rung) {
            return Poll::Ready(());
        }
        match &mut rung.waiting {
            Some(waiting) => waiting.clone_from(cx.waker()),
            None => rung.waiting = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Holds the thread up until a call comes, or for so long; `None` is for ever. May return early.
    pub fn wait(&self, timeout: Option<Duration>) {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        if !rung.is_rung {
            let timeout = timeout.unwrap_or(Duration::MAX);
            rung.threads += 1;
            rung = self.threads.wait_timeout(rung, timeout).unwrap_or_else(PoisonError::into_inner).0;
            rung.threads -= 1;
        }
        rung.is_rung = false;
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
