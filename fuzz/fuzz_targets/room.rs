#![no_main]

use yrs_websocket_fuzz::{let_yrs_panic, room};

libfuzzer_sys::fuzz_target!(init: let_yrs_panic(), |data: &[u8]| room(data));
