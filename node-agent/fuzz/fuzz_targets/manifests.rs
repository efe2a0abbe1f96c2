//! Manifests of any bytes → rules.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sallyport_fuzz::manifests(data));
