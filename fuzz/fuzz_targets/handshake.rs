#![no_main]

use yrs_websocket_fuzz::{handshake, let_yrs_panic};

libfuzzer_sys::fuzz_target!(init: let_yrs_panic(), |data: &[u8]| handshake(data));
