#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| yrs_websocket_fuzz::messages(data));
