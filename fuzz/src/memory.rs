//! What is allocated: counted per thread, and refused where it is a bomb.
//!
//! libFuzzer's `-malloc_limit_mb` hears of allocations only through a sanitizer, and `-rss_limit_mb` only of
//! memory that is touched. This works without either, and in the replay on stable.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    ptr,
};

/// Runs `f` and says how many bytes more than before it held at its peak, its result included.
pub(crate) fn peak<R>(f: impl FnOnce() -> R) -> (R, usize) {
    let outer = PEAK.get();
    let before = LIVE.get();
    PEAK.set(before);
    let result = f();
    let peak = PEAK.get();
    PEAK.set(outer.max(peak));
    (result, usize::try_from(peak - before).unwrap_or(0))
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let live = LIVE.get() + bytes;
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

// SAFETY: hands everything on to the system's allocator, or refuses.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > ALLOCATION_MAX {
            return ptr::null_mut();
        }
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() > ALLOCATION_MAX {
            return ptr::null_mut();
        }
        count(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > ALLOCATION_MAX {
            return ptr::null_mut();
        }
        // Both exist for a moment.
        count(size as isize);
        count(-(layout.size() as isize));
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Nothing that a few kilobytes of input ask for needs more at once.
const ALLOCATION_MAX: usize = 256 << 20;
