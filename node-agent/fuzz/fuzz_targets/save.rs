//! The output of `iptables-save` → the change that is planned.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sallyport_fuzz::save(data));
