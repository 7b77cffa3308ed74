-- Claim ticks, [[entry, exact name, run, last_run_at, task id, details, after, alone]...]: a claim without a task id only changes
-- the last_run_at, which must be `after`, where that is given; of a claim that is `alone` no other of its entry may be pending.
-- Tell what is overdue; forget what nobody lists any more: [now, listed, microseconds until the next is overdue, [refusal or
-- null...], [[task id, exact name, run, details]...]].
CREATE FUNCTION lockbeat_claim_ticks(
  p_app bytea, p_replica text, p_claims json, p_ttl bigint, p_alive bigint, p_memory bigint, p_backlog bigint,
  p_at_once bigint, p_skip bigint
) RETURNS json LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint := lockbeat_alone(p_app);
  v_refusals json := '[]';
  v_listed boolean;
  v_gone text[];
BEGIN
  IF json_array_length(p_claims) > 0 THEN
    WITH asked AS MATERIALIZED (
      SELECT n, decode(x->>0, 'hex') AS entry, decode(x->>1, 'hex') AS exact, (x->>2)::bigint AS run,
        decode(x->>3, 'hex') AS last_run_at, x->>4 AS task_id, x->>5 AS details, decode(x->>6, 'hex') AS after,
        coalesce((x->>7)::boolean, false) AS alone
      FROM json_array_elements(p_claims) WITH ORDINALITY a(x, n)
    ), judged AS MATERIALIZED (
      SELECT a.*, e.count, e.last_run_at AS stored,
        CASE
          WHEN a.task_id = '' THEN
            CASE WHEN e.count > a.run OR (e.count = a.run AND e.last_run_at NOT IN (a.after, a.last_run_at)) THEN 'refused'
              ELSE 'moves' END
          -- its answer was lost
          WHEN c.replica = p_replica THEN 'again'
          WHEN c.replica IS NOT NULL OR e.count >= a.run THEN 'refused'
          -- whoever else has moved the entry on has dealt with this tick
          WHEN e.count = a.run - 1 AND e.last_run_at <> a.after THEN 'refused'
          WHEN e.count IS NOT NULL AND CASE WHEN a.alone THEN 1 ELSE p_backlog END <= (
            SELECT count(*) FROM lockbeat_claim p WHERE p.app = p_app AND p.entry = a.entry
          ) THEN 'refused'
          -- with a smaller count than expected the state was lost in part: the replica knows better
          ELSE 'new'
        END AS verdict
      FROM asked a
      LEFT JOIN lockbeat_entry e ON e.app = p_app AND e.name = a.entry
      LEFT JOIN lockbeat_claim c ON c.app = p_app AND c.task_id = a.task_id
    ), moved AS (
      INSERT INTO lockbeat_entry SELECT p_app, entry, run, last_run_at FROM judged WHERE verdict IN ('new', 'moves')
      ON CONFLICT (app, name) DO UPDATE SET count = EXCLUDED.count, last_run_at = EXCLUDED.last_run_at
    ), moved_again AS (
      UPDATE lockbeat_entry e SET last_run_at = j.last_run_at FROM judged j
      WHERE j.verdict = 'again' AND e.app = p_app AND e.name = j.entry AND e.count = j.run
    ), claimed AS (
      INSERT INTO lockbeat_claim
      SELECT p_app, task_id, entry, exact, run, p_replica, v_now + p_ttl, details FROM judged WHERE verdict = 'new'
    ), claimed_again AS (
      UPDATE lockbeat_claim c SET until = v_now + p_ttl FROM judged j
      WHERE j.verdict = 'again' AND c.app = p_app AND c.task_id = j.task_id
    )
    SELECT json_agg(
      CASE WHEN verdict = 'refused' THEN json_build_array(coalesce(count, run), encode(coalesce(stored, last_run_at), 'hex')) END
      ORDER BY n
    ) INTO v_refusals FROM judged;
  END IF;

  -- Who is there, and who is not any more? What only those list who are gone is listed by nobody.
  UPDATE lockbeat_replica SET seen = v_now WHERE app = p_app AND name = p_replica;
  v_listed := FOUND;
  SELECT array_agg(name) INTO v_gone FROM lockbeat_replica WHERE app = p_app AND seen <= v_now - p_alive;
  IF v_listed AND v_gone IS NOT NULL AND NOT lockbeat_somebody_lists(p_app, v_now - p_alive) THEN
    DELETE FROM lockbeat_listed WHERE app = p_app AND replica = ANY (v_gone);
    DELETE FROM lockbeat_replica WHERE app = p_app AND name = ANY (v_gone);
    UPDATE lockbeat_entry e SET unlisted = v_now WHERE app = p_app AND unlisted IS NULL
      AND NOT EXISTS (SELECT FROM lockbeat_listed l WHERE l.app = e.app AND l.name = e.name);
  END IF;
  DELETE FROM lockbeat_entry WHERE app = p_app AND unlisted <= v_now - p_memory;
  DELETE FROM lockbeat_claim WHERE app = p_app AND until <= v_now - p_memory;

  RETURN json_build_array(
    v_now,
    v_listed,
    (SELECT min(until) - v_now FROM lockbeat_claim WHERE app = p_app AND until > v_now),
    v_refusals,
    coalesce((
      SELECT json_agg(json_build_array(task_id, encode(exact, 'hex'), run, details) ORDER BY until, run) FROM (
        SELECT * FROM lockbeat_claim WHERE app = p_app AND until <= v_now
        ORDER BY until, run OFFSET p_skip LIMIT p_at_once
      ) overdue
    ), '[]')
  );
END $$;

-- What earlier releases call: their claims have neither `after` nor `alone`.
CREATE OR REPLACE FUNCTION lockbeat_claim(
  p_app bytea, p_replica text, p_claims json, p_ttl bigint, p_alive bigint, p_memory bigint, p_backlog bigint,
  p_at_once bigint, p_skip bigint
) RETURNS json LANGUAGE sql SET lock_timeout = '1s' AS $$
  SELECT lockbeat_claim_ticks(p_app, p_replica, p_claims, p_ttl, p_alive, p_memory, p_backlog, p_at_once, p_skip)
$$;
