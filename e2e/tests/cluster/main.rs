//! What comes of it in a real kind cluster, which a test has for itself, one module a promise.

mod agent_killed_under_load_loses_no_connection;
mod api_server_stopped_changes_nothing_and_drift_is_repaired;
mod crd_deleted_changes_no_rule;
mod ipv6_forward_works;
mod kube_proxy_restarts_beside_us;
mod node_that_dies_does_not_block_a_delete;
mod origin_story_on_kind;
mod uninstall_leaves_the_nodes_as_before;
mod upgrade_under_load_loses_nothing;
