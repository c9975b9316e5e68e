#![no_main]

use yrs_websocket_fuzz::{let_yrs_panic, store};

libfuzzer_sys::fuzz_target!(init: let_yrs_panic(), |data: &[u8]| store(data));
