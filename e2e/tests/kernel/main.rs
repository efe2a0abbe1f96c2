//! What packets do in a real kernel: a lone gateway in a lab of network namespaces, one module a promise.

mod addresses_come_and_go;
mod bad_input;
mod both_variants;
mod cleanup_leaves_no_trace;
mod closes_what_is_no_longer_allowed;
mod drift_is_repaired;
mod expired_forward_is_closed_on_time;
mod foreign_changes_under_load;
mod foreign_rules_untouched;
mod gives_up_and_recovers;
mod host_listener;
mod ipv6;
mod local_user;
mod modes;
mod one_agent_per_state_dir;
mod origin_story;
mod other_firewalls;
mod port_ranges;
mod read_only_state_directory;
mod reboot;
mod removed_target_drains_or_is_severed;
mod render_and_plan;
mod several_targets;
mod survives_agent_death;
mod udp_follows;
mod unreadable_tables;
