"""Faults that the product could have, each in one place, and the tests that must notice them."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    file: str  # in celery_lockbeat/
    old: str  # stands there exactly once
    new: str
    tests: tuple[str, ...]  # of which at least one must fail; those of one file, where one will do


CONTRACT = "tests/stores/test_contract.py::"
REDIS = "tests/stores/test_redis.py::"
BEATS = "tests/stores/test_beat_contract.py::"
REPLICAS = "tests/test_scheduler_replicas.py::"
LOCK = "tests/test_lock.py::"
RENEWAL = "tests/test_renewal.py::"
TASK = "tests/test_task.py::"
BUSY = "tests/test_busy_children.py::"
RUNS = "tests/test_runs.py::"
BAD_MOMENTS = "tests/test_bad_moments.py::"
PROMETHEUS = "tests/contrib/test_prometheus.py::"
LIMITS = "tests/test_limits.py::"
WAYS_OUT = "tests/test_ways_out.py::"
ANNOUNCED = "tests/test_announcements.py::"
PROCESSES = "tests/processes/"

MUTANTS = [
    # -- what the stores compare ---------------------------------------------------------------------------------------
    Mutant(
        "extend without the token",
        "stores/redis/lua/extend.lua",
        "if not lock or string.sub(lock, 1, 16) ~= ARGV[1] or",
        "if not lock or",
        (CONTRACT + "test_a_later_hold_of_the_same_holder_is_not_its_earlier_one",),
    ),
    Mutant(
        "extend by name",
        "stores/redis/lua/extend.lua",
        "if not lock or string.sub(lock, 1, 16) ~= ARGV[1] or string.sub(lock, 30, 29 + #holder) ~= holder then",
        "if not lock then",
        (CONTRACT + "test_an_earlier_holder_neither_extends_nor_frees_the_next_ones_lock",),
    ),
    Mutant(
        "extend what has run out",
        "stores/redis/lua/extend.lua",
        "if tonumber(string.sub(lock, 17, 29)) <= now then",
        "if false then",
        (CONTRACT + "test_an_expired_lease_is_lost_even_if_nobody_took_the_key",),
    ),
    Mutant(
        "release without the token",
        "stores/redis/lua/release.lua",
        "if type(lock) ~= 'string' or string.sub(lock, 1, 16) ~= ARGV[1] then",
        "if type(lock) ~= 'string' then",
        (CONTRACT + "test_a_later_hold_of_the_same_holder_is_not_its_earlier_one",),
    ),
    Mutant(
        "release without the holder",
        "stores/redis/lua/release.lua",
        " or string.sub(lock, 30, 29 + #holder) ~= holder then",
        " then",
        (CONTRACT + "test_another_with_the_same_token_is_not_the_owner",),
    ),
    Mutant(
        "release what has run out",
        "stores/redis/lua/release.lua",
        "if (tonumber(string.sub(lock, 17, 29)) or 0) <= now or ",
        "if ",
        (CONTRACT + "test_an_expired_lease_is_lost_even_if_nobody_took_the_key",),
    ),
    Mutant(
        "release and forget the run",
        "stores/redis/lua/release.lua",
        "local remembered = KEYS[2] and ARGV[4] ~= '0'",
        "local remembered = false",
        (CONTRACT + "test_a_finished_run_is_not_granted_again",),
    ),
    Mutant(
        "what is remembered in a lock is not asked for",
        "stores/redis/lua/acquire.lua",
        "if mark and string.sub(KEYS[i], -13) == ':' .. mark then",
        "if false then",
        (CONTRACT + "test_each_run_of_a_key_is_remembered_however_many_follow_it",),
    ),
    Mutant(
        "what is remembered in a lock is forgotten when the key is used again",
        "stores/redis/lua/acquire.lua",
        "if mark then\n  -- The key is used again",
        "if false then\n  -- The key is used again",
        (CONTRACT + "test_each_run_of_a_key_is_remembered_however_many_follow_it",),
    ),
    Mutant(
        "what is remembered in a lock is remembered too long",
        "stores/redis/lua/acquire.lua",
        "mark = forgotten > now and mark",
        "mark = mark",
        (CONTRACT + "test_a_run_is_remembered_for_its_time_only_also_when_another_has_followed",),
    ),
    Mutant(
        "what release 0.1.0 looks for is remembered in the lock",
        "stores/redis/names.py",
        "    if not has_nonce(run):\n",
        "    if not run:\n",
        (
            "tests/stores/test_redis_memory.py::test_a_tick_and_a_message_without_a_nonce_that_we_have_finished_are_known_to_workers_of_0_1_0",
        ),
    ),
    Mutant(
        "a kept key remembers no run",
        "stores/redis/lua/release.lua",
        "(inside and string.format('#%s%.0f ', ARGV[5], now + ARGV[4]) or ' ')",
        "' '",
        (CONTRACT + "test_a_key_that_is_kept_is_held_and_its_run_remembered",),
    ),
    Mutant(
        "free by name",
        "stores/redis/lua/free.lua",
        "if not is_lock(lock) or string.sub(lock, 30, 29 + #holder) ~= holder then",
        "if not is_lock(lock) then",
        ("tests/stores/test_free.py::test_only_the_holders_own_live_lease_is_freed",),
    ),
    Mutant(
        "acquire without dedupe",
        "stores/redis/lua/acquire.lua",
        "if beside then",
        "if false then",
        (CONTRACT + "test_a_finished_run_is_not_granted_again",),
    ),
    Mutant(
        "a finished run is asked for only beside a lock",
        "stores/redis/lua/acquire.lua",
        "local more = there > (lock and 1 or 0)",
        "local more = there > 1",
        (REDIS + "test_a_finished_run_is_remembered_though_its_lock_is_forgotten",),
    ),
    Mutant(
        "a token by the clock's text, though it is another",
        "stores/redis/lua/acquire.lua",
        "if #head == 16 and token == micros then",
        "if #head == 16 then",
        (REDIS + "test_tokens_grow_when_the_servers_clock_was_set_back",),
    ),
    Mutant(
        "a token by the clock's text, though it is too short",
        "stores/redis/lua/acquire.lua",
        "if #head == 16 and token == micros then",
        "if token == micros then",
        (REDIS + "test_a_lock_is_written_in_one_form_whatever_the_time",),
    ),
    Mutant(
        "acquire what is held",
        "stores/redis/lua/acquire.lua",
        "if remaining <= 0 then",
        "if remaining <= 1000000 then",
        (CONTRACT + "test_a_held_key_is_refused_with_who_holds_it_and_for_how_long",),
    ),
    Mutant(
        "a token that begins anew once it was forgotten",
        "stores/redis/lua/acquire.lua",
        "local token = micros",
        "local token = 1",
        (CONTRACT + "test_tokens_grow_after_the_store_has_forgotten_everything",),
    ),
    Mutant(
        "a token that is the clock alone",
        "stores/redis/lua/acquire.lua",
        "token = math.max(micros, last + 1)",
        "token = micros",
        (REDIS + "test_tokens_grow_when_the_servers_clock_was_set_back",),
    ),
    Mutant(
        "a safety copy is not known for one",
        "stores/redis/lua/acquire.lua",
        "run == our_run and 1 or 0",
        "0",
        (CONTRACT + "test_a_copy_of_the_running_run_is_told_so",),
    ),
    Mutant(
        "acquire for somebody who waits no more",
        "stores/redis/lua/acquire.lua",
        "if now > tonumber(ARGV[3]) and ARGV[3] ~= '0' then",
        "if false then",
        (REDIS + "test_what_was_asked_of_a_server_that_hung_is_not_granted_when_it_wakes_up_and_nobody_waits",),
    ),
    Mutant(
        "claim without compare-and-set",
        "stores/redis/lua/claim.lua",
        "(count >= tonumber(run) or pending >= backlog)",
        "pending >= backlog",
        (BEATS + "test_of_all_replicas_that_claim_a_tick_one_gets_it_and_the_others_get_the_state",),
    ),
    Mutant(
        "claim without a backlog",
        "stores/redis/lua/claim.lua",
        "(count >= tonumber(run) or pending >= backlog)",
        "count >= tonumber(run)",
        (BEATS + "test_an_entry_with_too_many_pending_claims_gets_no_more_until_one_is_settled",),
    ),
    Mutant(
        "a claim is granted again to another",
        "stores/redis/lua/claim.lua",
        "if string.sub(claims[i], 1, #replica + 1) == replica .. ' ' then",
        "if true then",
        (BEATS + "test_a_claim_whose_answer_was_lost_is_granted_again_to_the_same_replica_only",),
    ),
    Mutant(
        "take over what is not overdue",
        "stores/redis/lua/take_over.lua",
        "(tonumber(due) <= now or owner == ARGV[1])",
        "true",
        (BEATS + "test_an_overdue_claim_is_taken_over_once",),
    ),
    Mutant(
        "settle what is another's",
        "stores/redis/lua/settle.lua",
        "if claims[i] and string.sub(claims[i], 1, #owner) == owner then",
        "if claims[i] then",
        (BEATS + "test_who_lost_a_claim_cannot_settle_or_hand_it_over",),
    ),
    Mutant(
        "hand over what is another's",
        "stores/redis/lua/settle.lua",
        "if claim and string.sub(claim, 1, #owner) == owner then",
        "if claim then",
        (BEATS + "test_who_lost_a_claim_cannot_settle_or_hand_it_over",),
    ),
    Mutant(
        "settled claims go on to count as pending",
        "stores/redis/lua/settle.lua",
        "math.max(0, pending - 1)",
        "pending",
        (BEATS + "test_an_entry_with_too_many_pending_claims_gets_no_more_until_one_is_settled",),
    ),
    Mutant(
        "in memory: claim without compare-and-set",
        "stores/sqlite/beats.py",
        "if state.total_run_count >= run:",
        "if False:",
        (BEATS + "test_of_all_replicas_that_claim_a_tick_one_gets_it_and_the_others_get_the_state",),
    ),
    Mutant(
        "in memory: extend without the token",
        "stores/sqlite/locks.py",
        "WHERE key = ? AND token = ? AND holder = ? AND until > ?",
        "WHERE key = ? AND ? > 0 AND holder = ? AND until > ?",
        (CONTRACT + "test_a_later_hold_of_the_same_holder_is_not_its_earlier_one",),
    ),
    Mutant(
        "in memory: grant in files that were deleted",
        "stores/sqlite/database.py",
        "if self.files != files_at(*self.watched):",
        "if False:",
        ("tests/stores/test_memory.py::test_nothing_is_granted_in_files_that_others_have_taken_the_place_of",),
    ),
    Mutant(
        "in memory: begin anew though others have the files open",
        "stores/sqlite/host.py",
        "rescue(self.state, PERHAPS_ALIVE, within=self._timeout)",
        "pass",
        ("tests/stores/test_memory.py::test_a_key_whose_holder_lives_is_given_to_nobody_though_the_files_are_deleted",),
    ),
    Mutant(
        "in memory: take the holders for dead where their file was deleted",
        "stores/sqlite/host.py",
        "connection.execute(PERHAPS_ALIVE)",
        "pass",
        ("tests/stores/test_memory.py::test_a_key_whose_holder_lives_is_given_to_nobody_though_the_files_are_deleted",),
    ),
    Mutant(
        "in memory: leave the place of the earlier release alone",
        "stores/sqlite/host.py",
        "self._live_in(earlier)",
        "pass",
        (
            "tests/stores/test_memory.py::test_where_processes_of_the_earlier_release_are_all_stay_until_the_last_of_them_has_gone",
        ),
    ),
    # -- a store that says no ------------------------------------------------------------------------------------------
    Mutant(
        "fall back from a store that says no",
        "locks/acquisition.py",
        "isinstance(exc, (StoreRefused, UnreadableKey)):",
        "isinstance(exc, UnreadableKey):",
        ("tests/stores/test_refusals.py::test_a_server_that_says_no_is_refused_with_host_setting_and_reason",),
    ),
    Mutant(
        "TLS on one side only is an outage",
        "stores/redis/node.py",
        "if not self._has_answered and isinstance(exc, (RedisError, OSError)):",
        "if False:",
        ("tests/stores/test_refusals.py::test_a_server_that_speaks_no_tls_is_not_taken_for_a_slow_one",),
    ),
    # -- the beat ------------------------------------------------------------------------------------------------------
    Mutant(
        "a task id of its own for each try to claim",
        "beat/claims.py",
        "task_id = asked.task_id if asked is not None and asked.state.total_run_count == run else uuid()",
        "task_id = uuid()",
        (REPLICAS + "test_a_tick_whose_claims_answer_was_lost_keeps_its_task_id",),
    ),
    Mutant(
        "the task id is chosen after the claim",
        "beat/messages.py",
        'options["task_id"] = options.get("task_id") or tick.task_id',
        'options["task_id"] = options.get("task_id") or __import__("uuid").uuid4().hex',
        (REPLICAS + "test_what_a_replica_has_claimed_when_it_dies_is_taken_over_under_the_same_task_id",),
    ),
    Mutant(
        "take over under a new task id",
        "beat/claims.py",
        "self._take(item, each.run, each.task_id, each.details, asked, sure_until, taken_over=True)",
        "self._take(item, each.run, uuid(), each.details, asked, sure_until, taken_over=True)",
        (REPLICAS + "test_what_a_replica_has_claimed_when_it_dies_is_taken_over_under_the_same_task_id",),
    ),
    Mutant(
        "no freeze check",
        "beat/claims.py",
        "fresh_until = asked + self._ttl * (1 - MARGIN)",
        "fresh_until = math.inf",
        (REPLICAS + "test_a_replica_that_was_frozen_for_longer_than_its_claims_last_publishes_none_of_them",),
    ),
    Mutant(
        "no freeze check before a batch is flushed",
        "beat/publisher.py",
        "if any(now >= min(tick.fresh_until, tick.sure_until) for tick in ticks):",
        "if False:",
        (REPLICAS + "test_a_replica_that_was_frozen_for_longer_than_its_claims_last_publishes_none_of_them",),
    ),
    Mutant(
        "a claim is fresh from its answer on",
        "beat/claims.py",
        "claim.task_id, claim.details, asked, sure_until)",
        "claim.task_id, claim.details, self._clock(), sure_until)",
        (REPLICAS + "test_a_replica_that_was_frozen_for_longer_than_its_claims_last_publishes_none_of_them",),
    ),
    Mutant(
        "what Celery's apply_entry keeps to itself is taken for published",
        "beat/scheduler.py",
        "            sending.error = cause if isinstance(cause, Exception) else exc\n",
        "",
        (REPLICAS + "test_what_is_due_while_the_broker_is_down_is_published_in_order_when_it_is_back",),
    ),
    Mutant(
        "settle before publish",
        "beat/scheduler.py",
        "            self._publisher.publish(ticks)\n            self._settle(store)\n",
        "            self._ledger._sent += [(tick.task_id, tick.item.key) for tick in ticks]\n"
        "            self._settle(store)\n            self._publisher.publish(ticks)\n",
        (REPLICAS + "test_with_many_replicas_too_what_the_broker_refused_is_published_once_and_in_order",),
    ),
    Mutant(
        "what cannot be published is forgotten",
        "beat/ledger.py",
        "        self.handed_over += self.unsent\n        self.unsent.clear()\n",
        "        self._sent += [(tick.task_id, tick.item.key) for tick in self.unsent.values()]\n        self.unsent.clear()\n",
        (REPLICAS + "test_what_is_due_while_the_broker_is_down_is_published_in_order_when_it_is_back",),
    ),
    Mutant(
        "a closed beat keeps what it has claimed",
        "beat/scheduler.py",
        "            self._replica.known = False\n            self._ledger.hand_over_all()\n",
        "            self._replica.known = False\n",
        (REPLICAS + "test_a_beat_that_is_closed_in_the_middle_of_a_tick_by_a_signal_settles_when_it_is_unwound",),
    ),
    Mutant(
        "what is written into the options of a tick stays in its entry",
        "beat/publisher.py",
        "self._scheduler.apply_entry(copied(tick.item.entry), producer=producer)",
        "self._scheduler.apply_entry(tick.item.entry, producer=producer)",
        ("tests/test_scheduler_seams.py::test_what_is_written_into_the_options_of_one_tick_is_gone_at_the_next",),
    ),
    Mutant(
        "RedBeat's entries are put back though nothing is lost",
        "contrib/redbeat/entries.py",
        "if not has_statics if self._statics.are_named else",
        "if True if self._statics.are_named else",
        ("tests/contrib/test_redbeat.py::test_what_is_deleted_stays_deleted_until_the_next_start",),
    ),
    Mutant(
        "RedBeat's entries are put back over what is there",
        "contrib/redbeat/hashes.py",
        "if redis.call('HEXISTS', KEYS[1], 'definition') == 1 then",
        "if false then",
        ("tests/contrib/test_redbeat.py::test_of_two_beats_that_put_an_entry_back_the_later_one_undoes_no_run",),
    ),
    # -- the lock ------------------------------------------------------------------------------------------------------
    Mutant(
        "trust from the answer on",
        "locks/acquisition.py",
        "own = OwnLease(answer, started,",
        "own = OwnLease(answer, monotonic(),",
        (LOCK + "test_trust_begins_when_the_lock_was_asked_for",),
    ),
    Mutant(
        "renew after a loss",
        "locks/lease.py",
        '        self.lose("the store says that the lock is not ours any more")',
        "        self.extended(monotonic())",
        (LOCK + "test_a_holds_timeline",),
    ),
    Mutant(
        "a lease that has run out here is trusted on",
        "locks/lease.py",
        'if self.state == "held" and not self.trusted:',
        "if False:",
        (LOCK + "test_a_holds_timeline",),
    ),
    Mutant(
        "the first renewal that fails is a loss",
        "locks/renewal.py",
        "            self._fail([lock for lock, _, _ in batch], started, exc)\n",
        "            for lock, _, _ in batch:\n                lock.extend_refused()\n",
        (RENEWAL + "test_the_renewers_timeline",),
    ),
    Mutant(
        "a lost lock is released",
        "locks/lock.py",
        "            self.abandon()\n            return False\n",
        "            self._store.locks.release(self.lease)\n            return False\n",
        (LOCK + "test_a_lost_lock_is_neither_renewed_nor_released_and_ends_its_block_with_lock_lost",),
    ),
    Mutant(
        "an acquire whose answer was lost is left alone",
        "locks/lock.py",
        "            self.abandon()\n            raise\n",
        "            raise\n",
        (BAD_MOMENTS + "test_a_block_that_never_heard_that_it_has_the_lock_leaves_none_behind",),
    ),
    Mutant(
        "what frees a lost acquire frees the next one, too",
        "locks/acquisition.py",
        "        if self.abandoned:\n",
        "        if False:\n",
        (WAYS_OUT + "test_what_frees_an_acquire_whose_answer_was_lost_does_not_free_the_next_one",),
    ),
    Mutant(
        "a context keeps what was held in it",
        "locks/scope.py",
        "self._lock = None if lock is None else weakref.ref(lock)",
        "self._lock = None if lock is None else lambda: lock",
        (WAYS_OUT + "test_a_lock_whose_owner_is_gone_is_not_renewed_whatever_contexts_remember",),
    ),
    Mutant(
        "what its release was kept from is renewed for ever",
        "locks/lock.py",
        "            self.abandon()  # what the release was kept from\n",
        "",
        (WAYS_OUT + "test_a_lock_that_somebody_has_is_not_renewed_wherever_the_way_out_of_its_block_is_struck",),
    ),
    Mutant(
        "a forked child holds its parent's lock",
        "locks/lease.py",
        'if self.state != "held" or self._pid != this_process.pid:\n            return 0.0',
        'if self.state != "held":\n            return 0.0',
        (LOCK + "test_a_forked_child_does_not_hold_its_parents_lock",),
    ),
    Mutant(
        "what is dropped is renewed for ever",
        "locks/renewal.py",
        "self._locks: weakref.WeakSet[Renewable] = weakref.WeakSet()",
        "self._locks: set[Renewable] = set()",
        (RENEWAL + "test_a_lock_that_was_discarded_or_dropped_is_not_renewed_any_more",),
    ),
    Mutant(
        "an orphan renews",
        "locks/renewal.py",
        "if orphaned():",
        "if False:",
        (PROCESSES + "test_endings.py::test_a_child_that_outlives_its_worker_stops_renewing_and_learns_of_its_loss",),
    ),
    Mutant(
        "freed before the child is dead",
        "locks/children.py",
        "end = end_of(pid) if pid else None",
        "end = () if pid else None",
        (PROCESSES + "test_endings.py::test_a_dead_childs_lock_is_free_within_a_second_of_its_death_and_not_before",),
    ),
    Mutant(
        "a dead child's lock is left to its ttl",
        "locks/orphans.py",
        "            freed = self._store_of(lock.driver, lock.connection).locks.free(lock.key, holder=lock.holder)",
        "            freed = False",
        (PROCESSES + "test_endings.py::test_a_dead_childs_lock_is_free_within_a_second_of_its_death_and_not_before",),
    ),
    Mutant(
        "a child that is stopped is renewed",
        "locks/keeping.py",
        "ward.late_at <= now < ward.ends and self._runs(ward.pid)",
        "ward.late_at <= now < ward.ends",
        (BUSY + "test_a_child_that_is_stopped_is_not_renewed_and_not_later_either",),
    ),
    Mutant(
        "a child is renewed before it is late",
        "locks/keeping.py",
        "ward.late_at <= now < ward.ends and self._runs(ward.pid)",
        "now < ward.ends and self._runs(ward.pid)",
        (BUSY + "test_of_a_child_that_renews_in_time_nothing_is_asked",),
    ),
    Mutant(
        "a child's loss is renewed by its parent",
        "locks/lease.py",
        "            self._note.unrenewed()  # before it is told\n",
        "",
        (BUSY + "test_a_loss_is_on_the_page_before_it_is_told",),
    ),
    Mutant(
        "a child does not ask whether its parent renewed",
        "locks/lease.py",
        "        if since is not None:\n            self._kept_until",
        "        if False:\n            self._kept_until",
        (BUSY + "test_a_child_whose_lease_ran_out_while_its_parent_renewed_it_holds_it_still",),
    ),
    Mutant(
        "what ran out is held again",
        "locks/lease.py",
        "        self._ran_out = monotonic() >= until\n",
        "",
        (BUSY + "test_a_lease_that_ran_out_unrenewed_stays_so_whatever_the_parent_hears_later",),
    ),
    # -- the task ------------------------------------------------------------------------------------------------------
    Mutant(
        "what is sent anew is a copy",
        "tasks/copies.py",
        "            headers[NONCE] = secrets.token_urlsafe(12)\n        return\n",
        "            headers[NONCE] = headers.get('id')\n        return\n",
        (RUNS + "test_each_sending_has_a_nonce_of_its_own_also_of_one_frozen_signature",),
    ),
    Mutant(
        "each try is a whole of its own",
        "tasks/copies.py",
        "        own = _is_own_next(sent, headers, request)\n",
        "        own = False\n",
        (RUNS + "test_a_retry_keeps_the_nonce_of_its_message_and_has_none_if_that_has_none",),
    ),
    Mutant(
        "what a run sends is sent anew when it is carried out again",
        "tasks/copies.py",
        '    text = f"{name_of(request)} {count} {task_id}"\n',
        '    text = f"{name_of(request)} {count} {task_id} {secrets.token_urlsafe(12)}"\n',
        (
            RUNS
            + "test_what_a_run_sends_has_the_same_nonces_when_it_is_carried_out_again_and_others_when_it_is_another",
        ),
    ),
    Mutant(
        "a second message's chord is left without an answer",
        "tasks/answers.py",
        "            if may_be_sent_anew(request):\n",
        "            if False:\n",
        (PROCESSES + "test_answers.py::test_a_second_chord_with_a_task_that_has_ended_ends",),
    ),
    Mutant(
        "what replaces a run eagerly finds its key held",
        "tasks/task.py",
        "            lock.end(hold=False, finished=False)\n",
        "            pass\n",
        (TASK + "test_what_replaces_a_run_may_have_its_key_also_eagerly",),
    ),
    Mutant(
        "a lost run ends as a success",
        "tasks/run.py",
        'if lock is not None and not self.held and lock.lost and self.options.on_lost != "warn" and ends_well(exc):',
        "if False:",
        (TASK + "test_a_lost_lock_reads_in_order_and_is_no_success_unless_asked",),
    ),
    Mutant(
        "a retry is a copy of its first try",
        "tasks/copies.py",
        "return _name(request, try_=str(request.retries)) if",
        'return _name(request, try_="0") if',
        (PROCESSES + "test_worker.py::test_however_a_run_ends_its_lock_is_free_at_once_and_its_story_told",),
    ),
    Mutant(
        "what goes back to its queue is remembered as finished",
        "tasks/run.py",
        "(isinstance(exc, Exception) and not isinstance(exc, Reject))",
        "isinstance(exc, Exception)",
        (PROCESSES + "test_worker.py::test_however_a_run_ends_its_lock_is_free_at_once_and_its_story_told",),
    ),
    Mutant(
        "a safety copy is acknowledged away",
        "tasks/run.py",
        "            return _GoesOnElsewhere(refusal.remaining)\n",
        '            return TaskSkipped("locked", key=key)\n',
        (PROCESSES + "test_worker.py::test_a_copy_runs_once_the_worker_of_its_run_is_dead",),
    ),
    Mutant(
        "a skipped run has no answer",
        "tasks/run.py",
        "            self._answer(self.ending)\n",
        "",
        (PROCESSES + "test_skips.py::test_who_waits_for_a_skipped_run_is_told_the_reason_and_the_holder",),
    ),
    Mutant(
        "a run that was skipped runs all the same",
        "tasks/run.py",
        "        if refusal is not None:\n            raise self._refused(key, refusal)\n",
        "",
        (TASK + "test_a_direct_call_takes_the_lock_and_a_held_one_raises_task_skipped",),
    ),
    Mutant(
        "the lock is kept when the body raises",
        "tasks/run.py",
        "            self._end(exc)\n            if self.ending is None",
        "            self.ending = exc\n            if self.ending is None",
        (TASK + "test_each_ending_is_told_once_in_order_and_frees_the_key",),
    ),
    Mutant(
        "the lock is taken outside of what autoretry adds, but not for a class that is registered",
        "tasks/binding.py",
        'if "run" in vars(task) and not _is_locked(task):',
        "if False:",
        ("tests/test_binding.py::test_what_autoretry_adds_is_inside_of_the_lock_and_sees_a_held_one",),
    ),
    Mutant(
        "the run of a class is what it was",
        "tasks/binding.py",
        "    elif not _takes_the_lock(own):\n",
        "    elif False:\n",
        ("tests/test_binding.py::test_every_way_to_the_body_leads_through_its_lock_which_is_taken_once",),
    ),
    Mutant(
        "whatever runs within a run is a part of it",
        "tasks/task.py",
        "if stack[-1] in going:\n            # self.run()",
        "if stack[0] in going:\n            # self.run()",
        (TASK + "test_a_task_that_calls_itself_finds_its_own_key_held",),
    ),
    Mutant(
        "the lock of a coroutine is free before it has ended",
        "tasks/binding.py",
        "locked = _marked(run_awaited if is_awaited(as_called) else run, as_called)",
        "locked = _marked(run, as_called)",
        ("tests/test_awaiting.py::test_whoever_awaits_a_task_holds_its_lock_until_the_coroutine_has_ended",),
    ),
    Mutant(
        "a cancelled coroutine does not wait for what it has asked the store",
        "tasks/awaiting.py",
        "    while not doing.done():\n",
        "    while cancelled is None and not doing.done():\n",
        ("tests/test_awaiting.py::test_one_that_is_cancelled_while_it_waits_for_its_lock_leaves_none_either",),
    ),
    Mutant(
        "a mapping makes a key in the order in which it came",
        "tasks/keys.py",
        "                if type(arguments[root]) not in PLAIN or not direct:\n",
        "                if not direct:\n",
        ("tests/test_keys.py::test_equal_mappings_are_one_key_in_whatever_order_they_came",),
    ),
    # -- what beats tell each other ------------------------------------------------------------------------------------
    Mutant(
        "an older definition is sent beside the newer one",
        "beat/claims.py",
        "            if self._leaves(item.key):\n",
        "            if False:\n",
        (ANNOUNCED + "test_the_newer_definition_wins_within_a_minute_and_no_tick_is_lost_or_doubled",),
    ),
    Mutant(
        "a tick that a dead beat has left is sent as an older definition has it",
        "beat/claims.py",
        "if item is not None and not self._leaves(each.entry):",
        "if item is not None:",
        (ANNOUNCED + "test_a_tick_that_a_dead_beat_has_left_is_not_taken_over_with_an_older_definition",),
    ),
    Mutant(
        "an entry is left to a beat that is dead",
        "beat/announcements.py",
        'if fields.get("kind") == "beat" and member.silent_for < ALIVE and fields.get("entries"):',
        'if fields.get("kind") == "beat" and fields.get("entries"):',
        (ANNOUNCED + "test_when_the_last_beat_with_the_newer_definition_is_gone_the_older_one_goes_on_within_seconds",),
    ),
    Mutant(
        "the older definition wins",
        "beat/announcements.py",
        "newer = self._age(key, others[digest].definitions[key]) > self._age(key, self._definitions[key])",
        "newer = self._age(key, others[digest].definitions[key]) < self._age(key, self._definitions[key])",
        (ANNOUNCED + "test_the_newer_definition_wins_within_a_minute_and_no_tick_is_lost_or_doubled",),
    ),
    # -- limits and what else comes from outside -----------------------------------------------------------------------
    Mutant(
        "a soft time limit strikes while a run ends",
        "tasks/limits.py",
        "self._came = True",
        "self._raise(number, frame)",
        (
            LIMITS
            + "test_a_soft_time_limit_at_any_moment_of_a_run_leaves_one_story_that_celery_agrees_with_and_no_lock",
        ),
    ),
    Mutant(
        "a soft time limit strikes when the run is over, and its message is not",
        "tasks/limits.py",
        "(lambda: None) if request is None else ref(request)",
        "lambda: None",
        (
            LIMITS
            + "test_a_soft_time_limit_at_any_moment_of_a_run_leaves_one_story_that_celery_agrees_with_and_no_lock",
        ),
    ),
    Mutant(
        "a soft time limit that came while a nested run ended is forgotten",
        "tasks/limits.py",
        "            if request is None:\n                self._raise(SIGNAL, None)",
        "",
        (LIMITS + "test_a_limit_that_comes_while_a_nested_run_ends_strikes_the_body_around_it",),
    ),
    Mutant(
        "what strikes the end of a run ends its story",
        "tasks/run.py",
        "                self._end_struck(exc)\n",
        "                raise\n",
        (LIMITS + "test_an_exception_from_outside_at_any_moment_after_the_body_leaves_one_story_and_no_lock",),
    ),
    Mutant(
        "what is told of a run is told again after what struck it",
        "observe/events.py",
        'if how is not None and shown["event"] not in self.emitted:',
        "if how is not None:",
        (LIMITS + "test_an_exception_from_outside_at_any_moment_after_the_body_leaves_one_story_and_no_lock",),
    ),
    # -- metrics -------------------------------------------------------------------------------------------------------
    Mutant(
        "what was in the journal before the exporter is counted",
        "contrib/prometheus/follower.py",
        "        self._tally.see(record)\n",
        "        self._tally.count(record)\n",
        (PROMETHEUS + "test_what_was_there_is_seen_and_what_comes_is_counted",),
    ),
    Mutant(
        "what happened while the store was away is not counted",
        "contrib/prometheus/follower.py",
        "follow(self._app, after=self._after,",
        "follow(self._app, after=None,",
        (PROMETHEUS + "test_a_store_that_is_away_is_said_and_what_happened_meanwhile_is_counted",),
    ),
    Mutant(
        "a fork ends its parent's spans",
        "contrib/opentelemetry.py",
        "        each.forget()\n",
        "        pass\n",
        ("tests/contrib/test_opentelemetry.py::test_a_fork_ends_no_span_of_its_parents_locks",),
    ),
]
