//! The rows: what is done, what shall come of it, and the tests that do it, each at the lowest tier where it is real.

use super::row::{Row, cluster, control_plane, kernel, pure};

/// All rows.
pub const ROWS: &[Row] = &[
    Row {
        number: 1,
        fault: "the agent is killed, or ends, and comes back",
        promise: "no rule changes, nothing is lost",
        tests: &[
            kernel("survives_agent_death", "nothing_is_lost_and_no_rule_changes_while_the_agent_dies_and_returns"),
            cluster("agent_killed_under_load_loses_no_connection", "no_connection_is_lost_and_no_rule_changes"),
        ],
    },
    Row {
        number: 2,
        fault: "the agent is upgraded, and the new one writes other rules for the same forwards",
        promise: "swapped in one transaction, nothing is lost",
        tests: &[
            kernel("survives_agent_death", "rules_in_the_format_of_another_version_are_swapped_and_nothing_is_lost"),
            cluster(
                "upgrade_under_load_loses_nothing",
                "no_connection_is_lost_from_the_version_before_to_this_one_and_back",
            ),
        ],
    },
    Row {
        number: 3,
        fault: "the operator dies, or stands still and goes on",
        promise: "gateways unaffected, the other replica takes over, never two writers",
        tests: &[
            control_plane("two_replicas_never_both_write", "leader_that_stood_still_writes_nothing_when_it_goes_on"),
            control_plane("two_replicas_never_both_write", "only_the_leader_writes_and_the_other_takes_over"),
        ],
    },
    Row {
        number: 4,
        fault: "the API server is away: killed, or silent",
        promise: "nothing is lost, drift is repaired, agents idle",
        tests: &[
            control_plane("api_server_away", "gateways_go_on_without_the_api_server"),
            cluster(
                "api_server_stopped_changes_nothing_and_drift_is_repaired",
                "forwards_work_on_and_drift_is_repaired_without_an_api_server",
            ),
        ],
    },
    Row {
        number: 5,
        fault: "the agent restarts while the API server is away",
        promise: "it goes on from its disk; without that it touches nothing",
        tests: &[
            control_plane("api_server_away", "gateways_go_on_without_the_api_server"),
            pure("nothing_is_decided_before_both_lists_are_complete"),
        ],
    },
    Row {
        number: 6,
        fault: "the gateway reboots: no rules, no forwarding",
        promise: "all is back within 5 s of the agent's start, without manifests or API server too",
        tests: &[
            control_plane("api_server_away", "gateways_go_on_without_the_api_server"),
            kernel("reboot", "rules_return_from_the_state_directory"),
        ],
    },
    Row {
        number: 7,
        fault: "others flush the nat table, the whole ruleset, or our jump",
        promise: "repaired within a second; long connections live through the flush of a table",
        tests: &[
            kernel("foreign_changes_under_load", "long_connections_live_through_a_flush_of_one_table"),
            kernel("foreign_changes_under_load", "new_connections_are_let_in_again_after_a_flush_of_everything"),
            kernel("drift_is_repaired", "every_drift_is_repaired_within_a_second_with_nft"),
            kernel("drift_is_repaired", "every_drift_is_repaired_within_a_second_with_legacy"),
            kernel("drift_is_repaired", "flushing_the_whole_ruleset_is_repaired_within_a_second"),
        ],
    },
    Row {
        number: 8,
        fault: "a rule of ours is edited, or somebody's takes our packets first",
        promise: "repaired within a second; after five moves in five minutes the first place is left to them",
        tests: &[
            kernel("drift_is_repaired", "every_drift_is_repaired_within_a_second_with_nft"),
            kernel("drift_is_repaired", "every_drift_is_repaired_within_a_second_with_legacy"),
            kernel("drift_is_repaired", "the_first_place_is_left_to_whoever_keeps_taking_it_and_they_are_named"),
        ],
    },
    Row {
        number: 9,
        fault: "rules of others are there, and change",
        promise: "never touched, moved or reset; nothing is lost",
        tests: &[
            kernel("foreign_changes_under_load", "others_change_their_rules_and_nothing_is_lost"),
            cluster("kube_proxy_restarts_beside_us", "kube_proxy_restarts_and_nothing_is_lost"),
            kernel("foreign_rules_untouched", "rules_of_others_keep_their_text_order_and_counters"),
        ],
    },
    Row {
        number: 10,
        fault: "iptables hangs, fails half way, or somebody has its lock",
        promise: "it is ended after 30 s and tried again later; the old rules stay",
        tests: &[
            kernel(
                "gives_up_and_recovers",
                "old_rules_stay_while_rules_cannot_be_written_and_the_change_gets_through_afterwards",
            ),
            kernel(
                "gives_up_and_recovers",
                "a_lock_that_somebody_holds_is_waited_for_and_then_given_up_until_it_is_free",
            ),
        ],
    },
    Row {
        number: 11,
        fault: "an earlier run has left rules in the other variant of iptables",
        promise: "they go, nobody else's do",
        tests: &[kernel("both_variants", "rules_left_in_the_other_variant_go_and_nobody_elses_do")],
    },
    Row {
        number: 12,
        fault: "somebody turns ip_forward off",
        promise: "on again within a second; a pool that forbids that says that it is off",
        tests: &[
            kernel("drift_is_repaired", "every_drift_is_repaired_within_a_second_with_nft"),
            kernel("drift_is_repaired", "every_drift_is_repaired_within_a_second_with_legacy"),
            pure("a_pool_that_requires_forwarding_never_writes_it_but_says_that_it_is_off"),
        ],
    },
    Row {
        number: 13,
        fault: "etcd is restored to an older snapshot",
        promise: "operator and agents follow what it holds now",
        tests: &[
            control_plane("restored_cluster", "rules_follow_a_cluster_that_was_restored_to_an_older_state"),
            pure("a_lease_that_is_not_as_it_was_written_is_told_and_written_anew"),
            pure("a_lease_that_is_not_as_we_wrote_it_ends_our_leadership"),
        ],
    },
    Row {
        number: 14,
        fault: "a watch is too old, or its connection is dead and nobody says so",
        promise: "listed anew; noticed within 70 s",
        tests: &[
            control_plane("restored_cluster", "agent_that_stood_still_while_history_was_forgotten_lists_anew"),
            control_plane("restored_cluster", "dead_connection_is_noticed_by_agent_and_operator"),
        ],
    },
    Row {
        number: 15,
        fault: "the API server refuses (429, 503) or is slow",
        promise: "asked less and less often; all is well once it answers",
        tests: &[
            control_plane("slow_api_server", "forwards_are_followed_later_and_nothing_is_written_twice"),
            pure("an_api_server_that_refuses_is_asked_less_and_less_often_and_followed_once_it_answers"),
            pure("what_failed_waits_longer_each_time_and_holds_nobody_up"),
            pure("a_refused_write_is_repeated_and_the_newest_status_wins"),
        ],
    },
    Row {
        number: 16,
        fault: "clocks disagree by hours",
        promise: "never two leaders, nobody is declared dead early",
        tests: &[
            pure("the_time_is_that_of_the_api_server"),
            pure("an_agent_is_silent_when_no_renewal_was_seen_for_as_long_as_its_lease_lasts"),
            pure("a_holder_is_gone_only_after_its_time_by_our_own_clock"),
        ],
    },
    Row {
        number: 17,
        fault: "the largest objects that the schema takes",
        promise: "carried like any other; what is beyond is refused in words",
        tests: &[
            control_plane("bad_input_is_refused_with_words", "every_refusal_says_what_to_do_and_makes_no_rule"),
            pure("many_names_are_counted_and_long_texts_cut"),
        ],
    },
    Row {
        number: 18,
        fault: "hostile or malformed objects",
        promise: "refused in words, never a rule, nobody else is harmed",
        tests: &[
            pure("no_slice_however_forged_becomes_a_wrong_rule"),
            kernel("bad_input", "each_bad_object_is_named_makes_no_rule_and_harms_nobody"),
            control_plane("bad_input_is_refused_with_words", "every_refusal_says_what_to_do_and_makes_no_rule"),
            control_plane(
                "malformed_object_stops_nobody",
                "hostile_objects_are_refused_by_schema_and_operator_and_all_others_are_served",
            ),
        ],
    },
    Row {
        number: 19,
        fault: "two forwards want one port",
        promise: "the holder keeps it; its successor waits until no node carries it any more",
        tests: &[
            pure("no_port_is_given_twice_and_nobody_loses_what_they_hold"),
            control_plane(
                "port_conflict_has_one_winner",
                "of_a_hundred_at_once_one_wins_and_neither_restarts_nor_edits_evict_it",
            ),
            control_plane("port_conflict_has_one_winner", "successor_waits_for_every_node"),
        ],
    },
    Row {
        number: 20,
        fault: "a forward asks for a port that the host needs, or a program of it listens on",
        promise: "refused, and the port is named; followed when the program has gone",
        tests: &[
            control_plane("bad_input_is_refused_with_words", "every_refusal_says_what_to_do_and_makes_no_rule"),
            control_plane(
                "one_gateway_in_the_way",
                "a_listener_on_one_gateway_is_named_keeps_its_clients_and_is_followed_when_it_goes",
            ),
        ],
    },
    Row {
        number: 21,
        fault: "a forward is deleted while an agent is silent or a node is gone",
        promise: "it waits for a live node and says so, not for a dead one",
        tests: &[
            control_plane("silent_agent_blocks_a_delete", "node_that_returns_is_rid_of_what_was_deleted_meanwhile"),
            control_plane("silent_agent_blocks_a_delete", "silent_agent_blocks_a_delete_and_says_so"),
            control_plane("silent_agent_blocks_a_delete", "dead_node_does_not_block_a_delete"),
            cluster("node_that_dies_does_not_block_a_delete", "forward_is_deleted_while_a_gateway_is_dead"),
        ],
    },
    Row {
        number: 22,
        fault: "the operator is removed first",
        promise: "one documented command releases what hangs",
        tests: &[control_plane(
            "uninstalled_in_any_order",
            "what_hangs_without_an_operator_is_released_by_one_command",
        )],
    },
    Row {
        number: 23,
        fault: "Sallyport is uninstalled in any order, or without an API server",
        promise: "nothing of it is left on the nodes",
        tests: &[
            control_plane("api_server_away", "gateways_go_on_without_the_api_server"),
            control_plane("uninstalled_in_any_order", "what_hangs_without_an_operator_is_released_by_one_command"),
            control_plane("uninstalled_in_any_order", "definitions_or_the_namespace_deleted_first_take_no_rule_along"),
            control_plane(
                "uninstalled_in_any_order",
                "an_agent_that_never_answers_is_waited_for_until_it_is_given_up_and_its_node_named",
            ),
            kernel("cleanup_leaves_no_trace", "host_is_as_before_with_either_variant"),
            cluster("uninstall_leaves_the_nodes_as_before", "nodes_are_as_before_with_helm_4_and_with_helm_3"),
        ],
    },
    Row {
        number: 24,
        fault: "operator and agent are of different versions",
        promise: "nothing is lost; what an agent does not understand leaves the old rules, and says so",
        tests: &[
            control_plane("versions_apart", "what_is_newer_than_an_agent_leaves_the_old_rules_and_says_so"),
            control_plane("versions_apart", "report_of_another_version_is_none_and_is_waited_for"),
            cluster(
                "upgrade_under_load_loses_nothing",
                "no_connection_is_lost_from_the_version_before_to_this_one_and_back",
            ),
            pure("a_field_that_the_operator_hashed_and_we_do_not_know_is_noticed"),
            pure("what_one_forward_has_new_leaves_the_other_as_it_is"),
        ],
    },
    Row {
        number: 25,
        fault: "definitions, slices or permissions vanish",
        promise: "rules stay, nothing is lost; it says what is missing",
        tests: &[
            control_plane("uninstalled_in_any_order", "definitions_or_the_namespace_deleted_first_take_no_rule_along"),
            control_plane("vanished_slices_remove_no_rule", "deleted_slice_leaves_the_rules_and_comes_back"),
            control_plane("vanished_slices_remove_no_rule", "deleted_definitions_leave_the_rules"),
            control_plane(
                "vanished_permissions_lose_nothing",
                "rules_stay_without_permissions_and_what_is_missing_is_named",
            ),
            cluster("crd_deleted_changes_no_rule", "rules_stay_when_the_definition_of_slices_is_deleted"),
        ],
    },
    Row {
        number: 26,
        fault: "a list comes in half, or empty",
        promise: "only a whole list takes anything away",
        tests: &[
            pure("a_list_that_breaks_off_takes_nothing_away"),
            pure("only_a_whole_list_makes_it_complete"),
            pure("a_slice_that_vanishes_with_forwards_in_it_keeps_them_however_it_vanishes"),
        ],
    },
    Row {
        number: 27,
        fault: "a node is no longer to be a gateway",
        promise: "its rules go before its agent does",
        tests: &[control_plane("relabelled_node_is_cleaned_first", "agent_stays_until_its_node_is_clean")],
    },
    Row {
        number: 28,
        fault: "a listen address goes and comes back",
        promise: "its rules wait for it, and nothing that is merely routed is captured",
        tests: &[
            kernel("drift_is_repaired", "every_drift_is_repaired_within_a_second_with_nft"),
            kernel("drift_is_repaired", "every_drift_is_repaired_within_a_second_with_legacy"),
            pure("a_forward_that_cannot_be_on_this_host_fails_alone"),
        ],
    },
    Row {
        number: 29,
        fault: "the state directory is full or read-only",
        promise: "a warning; rules follow all the same",
        tests: &[
            kernel("gives_up_and_recovers", "a_full_state_directory_is_a_warning_and_rules_follow_all_the_same"),
            kernel("read_only_state_directory", "rules_follow_while_the_state_directory_is_full_or_read_only"),
            pure("a_state_that_cannot_be_written_keeps_no_rule_alive"),
            pure("a_state_that_cannot_be_read_or_written_stops_no_pass"),
        ],
    },
    Row {
        number: 30,
        fault: "the agent stands still for long and goes on",
        promise: "it writes nothing old, and follows what happened meanwhile",
        tests: &[
            control_plane("restored_cluster", "agent_that_stood_still_while_history_was_forgotten_lists_anew"),
            control_plane("port_conflict_has_one_winner", "successor_waits_for_every_node"),
        ],
    },
    Row {
        number: 31,
        fault: "a local user of the gateway keeps connections to the probes' address, takes it, or holds the lock",
        promise: "rules are changed all the same, probes answered where the address can be had",
        tests: &[
            kernel("local_user", "idle_connections_of_a_local_user_keep_no_deleted_forward_open"),
            kernel("local_user", "a_local_user_who_has_the_address_of_the_probes_stops_nothing_else"),
            kernel("local_user", "a_lock_that_the_kubelet_made_readable_can_be_held_by_root_alone"),
            pure("whether_probes_are_answered_is_a_condition_of_its_own"),
        ],
    },
    Row {
        number: 32,
        fault: "something else is where a file of the agent's state should be",
        promise: "named at once, nothing is waited for; rules follow all the same, unless it is the lock",
        tests: &[
            pure("a_start_names_what_is_in_place_of_its_state_and_neither_hangs_nor_eats_memory"),
            pure("whatever_is_where_a_file_is_written_gives_way_or_is_named_at_once"),
        ],
    },
    Row {
        number: 33,
        fault: "a task of a program ends or panics",
        promise: "the program ends with it and says which; the next one goes on",
        tests: &[
            pure("a_task_that_ends_or_panics_ends_the_program_by_its_name"),
            pure("every_task_and_thread_is_made_where_it_is_awaited"),
        ],
    },
    Row {
        number: 34,
        fault: "somebody puts a rule into a table of iptables that iptables cannot read",
        promise: "what is no longer allowed is closed and cut, no jump is doubled, nothing new is programmed or called verified",
        tests: &[
            kernel("unreadable_tables", "native_rules_of_every_kind_double_no_jump_and_keep_nothing_open"),
            kernel("unreadable_tables", "verified_is_said_only_of_a_kernel_that_holds_our_rules_and_each_jump_once"),
            kernel("unreadable_tables", "a_rule_of_an_extension_that_is_missing_is_no_empty_table_either"),
            pure("whatever_others_do_no_jump_is_doubled_nothing_unwanted_stays_and_verified_is_true"),
        ],
    },
    Row {
        number: 35,
        fault: "somebody, or whoever has the operator's token, changes the agents' DaemonSet",
        promise: "the token is refused every field; what others change is put back, or told where it keeps returning",
        tests: &[
            control_plane("tokens", "tokens_reach_no_further_than_their_work"),
            control_plane("agents_daemonset_is_kept", "whatever_is_changed_is_put_back_and_who_goes_on_is_left_alone"),
            control_plane("agents_daemonset_is_kept", "agents_are_run_as_the_values_of_the_chart_say"),
            pure("what_returns_three_times_within_a_minute_is_left_alone_and_taken_up_again_later"),
        ],
    },
    Row {
        number: 36,
        fault: "other firewalls deny in FORWARD, drop the rest, and keep reordering it",
        promise: "what they deny by name wins and is named, what they drop without naming anything does not; nobody is fought, nothing lost",
        tests: &[
            kernel("denied_in_forward", "an_admins_deny_at_the_top_is_obeyed_and_named_and_stays"),
            kernel("denied_in_forward", "what_dockers_handbook_denies_is_denied_to_forwards_too"),
            kernel("denied_in_forward", "a_reject_that_a_distribution_ships_is_no_stop"),
            kernel(
                "denied_in_forward",
                "a_chain_that_denies_some_and_drops_the_rest_is_named_with_the_line_that_helps",
            ),
            kernel(
                "denied_in_forward",
                "a_default_that_comes_before_our_jump_is_outranked_and_denies_above_it_are_not",
            ),
            kernel(
                "denied_in_forward",
                "whoever_keeps_putting_denies_of_others_to_the_top_is_let_be_and_nothing_is_lost",
            ),
            pure("what_a_rule_is_to_forwards_is_known_by_its_whole_way_to_a_drop"),
        ],
    },
    Row {
        number: 37,
        fault: "somebody stops all forwarding by a first rule that drops everything",
        promise: "it is left alone and told with what ends it; all goes on when it is taken out",
        tests: &[
            kernel(
                "denied_in_forward",
                "a_first_rule_that_drops_everything_stops_all_forwarding_until_it_is_taken_out",
            ),
            pure("a_first_rule_that_drops_everything_above_our_jump_is_an_emergency_stop_and_stays_there"),
        ],
    },
    Row {
        number: 38,
        fault: "a host with denies that forwards outrank is upgraded to a version in which denies win",
        promise: "what passed passes, whatever becomes of the rules, until the pool says otherwise; what will win is named",
        tests: &[
            kernel(
                "denied_in_forward",
                "a_host_that_an_older_version_served_goes_on_as_it_did_and_names_what_will_win",
            ),
            kernel(
                "denied_in_forward",
                "forwards_win_over_denies_where_the_pool_says_so_and_follow_when_it_says_otherwise",
            ),
            pure("a_host_that_an_older_version_served_keeps_its_order_and_a_new_one_does_not"),
        ],
    },
    Row {
        number: 39,
        fault: "docker or a `hostPort` has published the port before a forward asks for it",
        promise: "refused, rule and command are named, its clients stay; followed when it has gone; who comes later revokes nothing",
        tests: &[
            kernel("published_port", "published_ports_stay_with_whoever_publishes_them_by_nft"),
            kernel("published_port", "published_ports_stay_with_whoever_publishes_them_by_legacy"),
            pure("a_rule_that_publishes_a_port_keeps_a_newcomer_out_as_a_listener_does"),
        ],
    },
    Row {
        number: 40,
        fault: "an edit adds a port that somebody else holds",
        promise: "what it adds is refused, the rest of it is in force, after a restart as well",
        tests: &[
            kernel("published_port", "ports_that_an_edit_adds_wait_while_the_rest_of_it_is_in_force"),
            pure("what_an_edit_adds_waits_while_the_rest_of_it_is_in_force"),
        ],
    },
    Row {
        number: 41,
        fault: "kube-proxy serves an external IP or a node port where a forward is to be",
        promise: "refused, the rule is named, the Service goes on",
        tests: &[
            kernel("published_port", "published_ports_stay_with_whoever_publishes_them_by_nft"),
            pure("whoever_publishes_a_port_holds_it_and_is_named"),
        ],
    },
    Row {
        number: 42,
        fault: "a segment comes late from a target, and connection tracking cannot place it",
        promise: "the session goes on",
        tests: &[
            kernel("late_segments", "a_late_segment_ends_no_session_with_nft"),
            kernel("late_segments", "a_late_segment_ends_no_session_with_legacy"),
        ],
    },
];
