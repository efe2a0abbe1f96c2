//! What a real API server, the operator and the agents of gateways in a lab make of objects, one module a promise.

mod agents_daemonset_is_kept;
mod api_server_away;
mod apply_to_verified_rules;
mod bad_input_is_refused_with_words;
mod chart;
mod draining_connections_are_counted;
mod drift_is_told;
mod expiry_needs_no_api_server;
mod malformed_object_stops_nobody;
mod many_forwards_stay_light;
mod one_gateway_in_the_way;
mod plan_shows_what_apply_does;
mod port_conflict_has_one_winner;
mod relabelled_node_is_cleaned_first;
mod restored_cluster;
mod resync_writes_nothing;
mod silent_agent_blocks_a_delete;
mod slow_api_server;
mod tightened_grant_closes_and_cuts;
mod tokens;
mod two_replicas_never_both_write;
mod uninstalled_in_any_order;
mod vanished_permissions_lose_nothing;
mod vanished_slices_remove_no_rule;
mod versions_apart;
