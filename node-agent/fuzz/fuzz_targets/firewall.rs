//! The rules of others, as iptables-save or nft print them → what is said of the path of forwards.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sallyport_fuzz::firewall(data));
