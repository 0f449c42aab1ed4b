"""Each rule of docs/DESIGN.md beside the tests that hold it; a test checks that they are there."""

from typing import NamedTuple


class Rule(NamedTuple):
    """A rule's number and its name, and tests as ``file::function`` below tests/, or a file alone."""

    number: int
    name: str
    tests: tuple[str, ...]


_FAULTS = "faults/test_faults.py::test_a_fault"

RULES = (
    Rule(
        1,
        "The core is pure",
        (
            "unit/test_structure.py::test_the_import_contracts_hold",
            "unit/test_structure.py::test_a_core_module_imports_no_clock",
        ),
    ),
    Rule(
        2,
        "One writer a shard, one commit a batch",
        (
            "contract/store_contract.py::test_a_stale_owner_is_refused",
            "contract/store_contract.py::test_one_wrong_range_among_several_refuses_all",
            "contract/store_contract.py::test_a_commit_that_was_sent_twice_is_written_once",
            "contract/test_redis_store.py::test_workers_that_fight_for_a_shard_lose_and_double_nothing",
            "contract/test_redis_errors.py::test_no_commit_is_half_written",
            "unit/test_shards.py::test_a_zombie_cannot_commit",
            _FAULTS,
        ),
    ),
    Rule(
        3,
        "The store's offsets are the truth",
        (
            "unit/test_shards.py::test_the_store_decides_where_reading_begins",
            "unit/test_shards.py::test_only_what_the_broker_acknowledged_may_be_committed",
            "unit/test_runner.py::test_fetches_that_overlap_are_trimmed",
            "unit/test_transport.py::test_what_is_committed_is_what_is_published",
            "unit/test_transport.py::test_an_offset_out_of_range_ends_the_worker",
            "integration/test_worker_lifecycle.py::test_where_reading_starts",
            "integration/test_on_kafka.py::test_stops_when_kafka_has_deleted_what_must_be_read_again",
            _FAULTS,
        ),
    ),
    Rule(
        4,
        "A change is published after its commit, from the outbox, at least once, in order per customer",
        (
            "unit/test_outbox.py::test_a_restart_at_any_moment_publishes_every_change",
            "unit/test_outbox.py::test_what_an_earlier_owner_left_comes_first",
            "unit/test_changes.py::test_the_same_move_found_again_has_the_same_id",
            "unit/test_runner.py::test_any_crashes",
            "e2e/test_real_kafka.py::test_killing_a_worker_on_a_real_broker_loses_and_doubles_nothing",
            _FAULTS,
        ),
    ),
    Rule(
        5,
        "Nothing is dropped in silence",
        (
            "properties/test_any_input.py::test_any_record_is_used_or_refused",
            "properties/test_any_input.py::test_a_dead_letter_keeps_every_byte",
            "unit/test_processor.py::test_dead_letters_are_committed_with_the_batch",
            "integration/test_cli.py::test_a_dead_letter_is_the_record_as_it_was",
        ),
    ),
    Rule(
        6,
        "Time comes from the log",
        (
            "unit/test_segmenter.py::test_time_never_steps_back",
            "unit/test_segmenter.py::test_the_ingestion_clock_is_the_running_maximum_of_record_times",
            "unit/test_runner.py::test_the_wall_clock_does_not_move_a_replay",
            "properties/test_against_reference.py::test_cuts_make_no_difference",
        ),
    ),
    Rule(
        7,
        "The fold does not care about order",
        (
            "unit/test_fold.py::test_order_does_not_matter",
            "unit/test_fold.py::test_a_duplicate_changes_nothing",
            "unit/test_fold.py::test_of_equal_instants_the_greater_wins",
            "properties/test_against_reference.py::test_the_order_of_a_customers_events_does_not_matter",
            "e2e/test_replay_or2.py::test_redeliveries_change_nothing",
        ),
    ),
    Rule(
        8,
        "Money is exact",
        (
            "unit/test_money.py::test_random_amounts_equal_decimal_arithmetic",
            "properties/test_any_input.py::test_money_is_exact",
            "properties/test_any_input.py::test_totals_of_any_amounts_are_exact",
            "e2e/test_replay_or2.py::test_all_totals_equal_a_recomputation",
        ),
    ),
    Rule(
        9,
        "No pickle, no eval",
        (
            "contract/test_state_docs.py::test_rows_of_any_shape_can_be_read",
            "unit/test_rows.py::test_a_row_is_as_documented",
            "unit/test_rows.py::test_damaged_rows_are_refused",
            "unit/test_trainer.py::test_learners_are_kept_as_json",
        ),
    ),
    Rule(
        10,
        "History never fires campaigns",
        (
            "unit/test_shards.py::test_a_first_start_is_history",
            "unit/test_shards.py::test_a_crash_in_a_first_start_forgets_no_history",
            "unit/test_shards.py::test_a_store_that_was_lost_is_rebuilt_as_history",
            "unit/test_shards.py::test_a_store_that_was_lost_is_rebuilt_with_the_lapses_that_were_published",
            "unit/test_transport.py::test_a_commit_carries_the_time_of_its_deadlines",
        ),
    ),
    Rule(
        11,
        "Order is defined",
        (
            "unit/test_segmenter.py::test_changes_are_ordered_by_deciding_record_then_deadline_then_customer",
            "unit/test_inbox.py::test_at_one_instant_signups_come_first_and_erasures_last",
            "properties/test_any_input.py::test_however_topics_are_fetched_they_are_merged_the_same",
            "e2e/test_replay_cdnow.py::test_four_shards_make_no_difference",
        ),
    ),
    Rule(
        12,
        "One activation at a time",
        (
            "contract/store_contract.py::test_an_older_activation_is_refused",
            "unit/test_activations.py::test_two_who_merge_at_once_make_one_activation",
            "unit/test_runner_population.py::test_a_policy_reaches_every_worker",
            "integration/test_policy_apply.py::test_a_fleet",
        ),
    ),
    Rule(
        13,
        "Learning is a function of the log",
        (
            "unit/test_clustering.py::test_neither_shards_nor_order_matter",
            "unit/test_trainer.py::test_it_does_not_matter_how_the_log_is_cut",
            "unit/test_trainer.py::test_what_is_learned_is_stored_with_the_offset",
            "integration/test_trainer.py::test_learning_on_kafka",
        ),
    ),
)
