#![no_main]

use yrs_websocket_fuzz::{let_yrs_panic, session};

libfuzzer_sys::fuzz_target!(init: let_yrs_panic(), |data: &[u8]| session(data));
