-- What operators want of the entries of an app. Names and times as in 0001; exact: the name, however long; passed_by: the claim
-- that was passed over last, by replica and task id; kept: when a beat has kept it last.
CREATE TABLE lockbeat_flag (
  app bytea, name bytea, exact bytea NOT NULL, paused boolean NOT NULL DEFAULT false, until bigint,
  skip bigint NOT NULL DEFAULT 0, told text NOT NULL DEFAULT '', skip_told text NOT NULL DEFAULT '',
  passed bigint NOT NULL DEFAULT 0, first text NOT NULL DEFAULT '', last text NOT NULL DEFAULT '',
  passed_by text NOT NULL DEFAULT '', why text NOT NULL DEFAULT '', kept bigint NOT NULL, PRIMARY KEY (app, name)
) WITH (fillfactor = 50);
CREATE INDEX lockbeat_flag_until ON lockbeat_flag (app, until) WHERE until IS NOT NULL;
-- flag: the exact name of the entry's flag
CREATE TABLE lockbeat_request (
  app bytea, name text, flag bytea NOT NULL, told text NOT NULL, passed bigint NOT NULL, first text NOT NULL,
  last text NOT NULL, cancelled boolean NOT NULL, asked bigint NOT NULL, PRIMARY KEY (app, name)
);
CREATE INDEX lockbeat_request_asked ON lockbeat_request (app, asked);

-- A flag as it is told: [exact name, paused, until, skip, told, skip_told, passed, first, last].
CREATE FUNCTION lockbeat_flag_told(f lockbeat_flag) RETURNS json LANGUAGE sql IMMUTABLE AS
  'SELECT json_build_array(encode(f.exact, ''hex''), f.paused, f.until, f.skip, f.told, f.skip_told, f.passed, f.first, f.last)';

-- Pause entries, [[name, exact name]...].
CREATE FUNCTION lockbeat_pause(p_app bytea, p_names json, p_told text, p_until bigint) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint := lockbeat_alone(p_app);
BEGIN
  INSERT INTO lockbeat_flag AS f (app, name, exact, paused, until, told, kept)
  SELECT DISTINCT ON (decode(x->>0, 'hex')) p_app, decode(x->>0, 'hex'), decode(x->>1, 'hex'), true, p_until, p_told, v_now
  FROM json_array_elements(p_names) x
  ON CONFLICT (app, name) DO UPDATE SET paused = true, until = p_until, told = p_told;
  RETURN to_json(true);
END $$;

-- End pauses of [[name, exact name]...], and ask for what they have passed over; the flags as they were, or null.
CREATE FUNCTION lockbeat_resume(p_app bytea, p_names json, p_lapsed boolean, p_request text, p_text text) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint := lockbeat_alone(p_app);
  v_before json;
BEGIN
  WITH asked AS (
    SELECT n, decode(x->>0, 'hex') AS name FROM json_array_elements(p_names) WITH ORDINALITY a(x, n)
  ), before AS MATERIALIZED (
    SELECT a.n, f AS flag, f.name, f.exact, f.passed, f.first, f.last FROM asked a
    JOIN lockbeat_flag f ON f.app = p_app AND f.name = a.name
    WHERE f.paused AND (NOT p_lapsed OR f.until <= v_now)
  ), requested AS (
    INSERT INTO lockbeat_request
    SELECT p_app, p_request || '-' || n, exact, p_text, passed, first, last, false, v_now FROM before
    WHERE p_request <> '' AND passed > 0
    ON CONFLICT DO NOTHING
  ), resumed AS (
    UPDATE lockbeat_flag f SET paused = false, until = NULL, told = '', passed = 0, first = '', last = ''
    FROM before b WHERE f.app = p_app AND f.name = b.name
  )
  SELECT json_agg(CASE WHEN b.n IS NOT NULL THEN lockbeat_flag_told(b.flag) END ORDER BY a.n) INTO v_before
  FROM asked a LEFT JOIN before b ON b.n = a.n;
  RETURN coalesce(v_before, '[]');
END $$;

-- Let the next ticks of entries, [[name, exact name]...], be passed over.
CREATE FUNCTION lockbeat_skip(p_app bytea, p_names json, p_count bigint, p_told text) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint := lockbeat_alone(p_app);
BEGIN
  INSERT INTO lockbeat_flag AS f (app, name, exact, skip, skip_told, kept)
  SELECT DISTINCT ON (decode(x->>0, 'hex')) p_app, decode(x->>0, 'hex'), decode(x->>1, 'hex'), p_count, p_told, v_now
  FROM json_array_elements(p_names) x
  ON CONFLICT (app, name) DO UPDATE SET skip = p_count, skip_told = p_told;
  RETURN to_json(true);
END $$;

-- Tell flags that say something, all or those of [name...].
CREATE FUNCTION lockbeat_flags(p_app bytea, p_names json, p_limit bigint) RETURNS json LANGUAGE sql AS $$
  SELECT coalesce(json_agg(lockbeat_flag_told(told.flag)), '[]') FROM (
    SELECT f AS flag FROM lockbeat_flag f WHERE f.app = p_app AND (f.paused OR f.skip > 0)
      AND (p_names IS NULL OR f.name IN (SELECT decode(x, 'hex') FROM json_array_elements_text(p_names) x))
    LIMIT p_limit
  ) told
$$;

-- Keep flags, [name...], and drop those that nobody has kept for long, or that say nothing any more.
CREATE FUNCTION lockbeat_keep(p_app bytea, p_names json, p_memory bigint) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint := lockbeat_alone(p_app);
BEGIN
  UPDATE lockbeat_flag SET kept = v_now
  WHERE app = p_app AND name IN (SELECT decode(x, 'hex') FROM json_array_elements_text(p_names) x);
  DELETE FROM lockbeat_flag WHERE app = p_app AND (kept <= v_now - p_memory OR NOT (paused OR skip > 0));
  RETURN to_json(true);
END $$;

-- Ask for ticks.
CREATE FUNCTION lockbeat_ask(p_app bytea, p_name text, p_flag bytea, p_told text) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint := lockbeat_alone(p_app);
BEGIN
  INSERT INTO lockbeat_request VALUES (p_app, p_name, p_flag, p_told, 0, '', '', false, v_now) ON CONFLICT DO NOTHING;
  RETURN to_json(true);
END $$;

-- Tell what is asked for, and whose pause is over by its time: [[[name, flag, told, passed, first, last, cancelled, count,
-- last_run_at, pending]...], [exact name...]]. Their keys among the entries begin with p_prefix, and '=' as short names do.
CREATE FUNCTION lockbeat_asked(p_app bytea, p_prefix bytea, p_limit bigint, p_skip bigint, p_lapsed bigint) RETURNS json
LANGUAGE sql AS $$
  SELECT json_build_array(
    (SELECT coalesce(json_agg(json_build_array(
       r.name, encode(r.flag, 'hex'), r.told, r.passed, r.first, r.last, r.cancelled, e.count, encode(e.last_run_at, 'hex'),
       (SELECT count(*) FROM lockbeat_claim c WHERE c.app = p_app AND c.entry = p_prefix || convert_to(r.name, 'UTF8'))
     ) ORDER BY r.asked, r.name), '[]')
     FROM (SELECT * FROM lockbeat_request WHERE app = p_app ORDER BY asked, name OFFSET p_skip LIMIT p_limit) r
     LEFT JOIN lockbeat_entry e ON e.app = p_app AND e.name = p_prefix || convert_to(r.name, 'UTF8')),
    (SELECT coalesce(json_agg(encode(f.exact, 'hex')), '[]') FROM (
       SELECT exact FROM lockbeat_flag WHERE app = p_app AND until <= lockbeat_now() LIMIT p_lapsed) f)
  )
$$;

-- Cancel requests, [name...]; the names of those that are there.
CREATE FUNCTION lockbeat_cancel(p_app bytea, p_names json) RETURNS json LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_cancelled json;
BEGIN
  PERFORM lockbeat_alone(p_app);
  WITH cancelled AS (
    UPDATE lockbeat_request SET cancelled = true
    WHERE app = p_app AND name IN (SELECT json_array_elements_text(p_names)) RETURNING name
  )
  SELECT json_agg(name) INTO v_cancelled FROM cancelled;
  RETURN coalesce(v_cancelled, '[]');
END $$;

-- Forget requests, [name...], but not yet what has been claimed of them: who asks late must not claim it again.
CREATE FUNCTION lockbeat_over(p_app bytea, p_names json, p_prefix bytea) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint := lockbeat_alone(p_app);
BEGIN
  DELETE FROM lockbeat_request WHERE app = p_app AND name IN (SELECT json_array_elements_text(p_names));
  UPDATE lockbeat_entry SET unlisted = v_now WHERE app = p_app AND unlisted IS NULL
    AND name IN (SELECT p_prefix || convert_to(x, 'UTF8') FROM json_array_elements_text(p_names) x);
  RETURN to_json(true);
END $$;

-- Why a claim is to be passed over, or that it has been: NULL: it is not. paused: whether for a pause alone.
CREATE FUNCTION lockbeat_passes(f lockbeat_flag, p_claim text, p_now bigint, p_paused boolean) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN f.passed_by = p_claim THEN 'again'
    WHEN f.paused AND coalesce(f.until > p_now, true) THEN 'paused'
    WHEN f.skip > 0 AND NOT p_paused THEN 'skipped'
  END
$$;

-- Note that claims are passed over: [[name of the flag, claim, details, why]...].
CREATE FUNCTION lockbeat_pass(p_app bytea, p_passed json) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  v_one json;
BEGIN
  -- one by one, for several may have one flag
  FOR v_one IN SELECT json_array_elements(p_passed) LOOP
    UPDATE lockbeat_flag SET
      passed = passed + (v_one->>3 = 'paused')::int, skip = skip - (v_one->>3 = 'skipped')::int,
      first = CASE WHEN v_one->>3 = 'paused' AND passed = 0 THEN v_one->>2 ELSE first END,
      last = CASE WHEN v_one->>3 = 'paused' THEN v_one->>2 ELSE last END,
      passed_by = v_one->>1, why = v_one->>3
    WHERE app = p_app AND name = decode(v_one->>0, 'hex');
  END LOOP;
END $$;

-- As before, with flags. Claims may name theirs: [[entry, exact name, run, last_run_at, task id, details, after, alone, flag]...],
-- and a refusal may be [null, why, what was told].
CREATE OR REPLACE FUNCTION lockbeat_claim_ticks(
  p_app bytea, p_replica text, p_claims json, p_ttl bigint, p_alive bigint, p_memory bigint, p_backlog bigint,
  p_at_once bigint, p_skip bigint
) RETURNS json LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint := lockbeat_alone(p_app);
  v_refusals json := '[]';
  v_passed json;
  v_listed boolean;
  v_gone text[];
BEGIN
  IF json_array_length(p_claims) > 0 THEN
    WITH asked AS MATERIALIZED (
      SELECT n, decode(x->>0, 'hex') AS entry, decode(x->>1, 'hex') AS exact, (x->>2)::bigint AS run,
        decode(x->>3, 'hex') AS last_run_at, x->>4 AS task_id, x->>5 AS details, decode(x->>6, 'hex') AS after,
        coalesce((x->>7)::boolean, false) AS alone, decode(x->>8, 'hex') AS flag
      FROM json_array_elements(p_claims) WITH ORDINALITY a(x, n)
    ), known AS MATERIALIZED (
      SELECT a.*, e.count, e.last_run_at AS stored, c.replica AS owner,
        a.task_id <> '' AND (c.replica = p_replica OR (c.replica IS NULL AND coalesce(
          e.count < a.run AND NOT coalesce(e.count = a.run - 1 AND e.last_run_at <> a.after, false), true
        ))) AS may,
        CASE WHEN f.name IS NOT NULL THEN lockbeat_passes(f, p_replica || ' ' || a.task_id, v_now, false) END AS passes,
        f.told, f.skip_told, f.why
      FROM asked a
      LEFT JOIN lockbeat_entry e ON e.app = p_app AND e.name = a.entry
      LEFT JOIN lockbeat_claim c ON c.app = p_app AND c.task_id = a.task_id
      LEFT JOIN lockbeat_flag f ON f.app = p_app AND f.name = a.flag
    ), judged AS MATERIALIZED (
      SELECT k.*,
        CASE
          WHEN k.task_id = '' THEN
            CASE WHEN k.count > k.run OR (k.count = k.run AND k.stored NOT IN (k.after, k.last_run_at)) THEN 'refused'
              ELSE 'moves' END
          WHEN k.passes = 'again' THEN 'passed again'
          WHEN k.passes IS NOT NULL AND k.may THEN 'passed'
          -- its answer was lost
          WHEN k.owner = p_replica THEN 'again'
          WHEN k.owner IS NOT NULL OR k.count >= k.run THEN 'refused'
          -- whoever else has moved the entry on has dealt with this tick
          WHEN k.count = k.run - 1 AND k.stored <> k.after THEN 'refused'
          WHEN k.count IS NOT NULL AND CASE WHEN k.alone THEN 1 ELSE p_backlog END <= (
            SELECT count(*) FROM lockbeat_claim p WHERE p.app = p_app AND p.entry = k.entry
          ) THEN 'refused'
          -- with a smaller count than expected the state was lost in part: the replica knows better
          ELSE 'new'
        END AS verdict
      FROM known k
    ), moved AS (
      INSERT INTO lockbeat_entry SELECT p_app, entry, run, last_run_at FROM judged
      WHERE verdict IN ('new', 'moves') OR (verdict = 'passed' AND coalesce(count <= run, true))
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
    ), given_up AS (
      DELETE FROM lockbeat_claim c USING judged j
      WHERE j.verdict = 'passed' AND c.app = p_app AND c.task_id = j.task_id
    )
    SELECT json_agg(
      CASE
        WHEN verdict = 'passed' THEN json_build_array(NULL, passes, CASE passes WHEN 'paused' THEN told ELSE skip_told END)
        WHEN verdict = 'passed again' THEN json_build_array(NULL, why, CASE why WHEN 'paused' THEN told ELSE skip_told END)
        WHEN verdict = 'refused' THEN json_build_array(coalesce(count, run), encode(coalesce(stored, last_run_at), 'hex'))
      END
      ORDER BY n
    ), json_agg(json_build_array(encode(flag, 'hex'), p_replica || ' ' || task_id, details, passes) ORDER BY n)
      FILTER (WHERE verdict = 'passed')
    INTO v_refusals, v_passed FROM judged;
    IF v_passed IS NOT NULL THEN
      PERFORM lockbeat_pass(p_app, v_passed);
    END IF;
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

-- As lockbeat_take_over in 0001, for [[task id, name of its flag]...]: [[taken task id...], {passed task id: what was told...}].
CREATE FUNCTION lockbeat_take_over_or_pass(p_app bytea, p_replica text, p_asked json, p_ttl bigint) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint := lockbeat_alone(p_app);
  v_told json;
  v_passed json;
  v_taken json;
BEGIN
  WITH judged AS MATERIALIZED (
    SELECT x->>0 AS task_id, x->>1 AS flag, f.told, c.details, c.task_id IS NOT NULL AS is_there,
      lockbeat_passes(f, p_replica || ' ' || (x->>0), v_now, true) AS passes
    FROM json_array_elements(p_asked) x
    JOIN lockbeat_flag f ON f.app = p_app AND f.name = decode(x->>1, 'hex')
    LEFT JOIN lockbeat_claim c ON c.app = p_app AND c.task_id = x->>0 AND c.until <= v_now
  ), passed AS (
    DELETE FROM lockbeat_claim c USING judged j
    WHERE j.passes = 'paused' AND j.is_there AND c.app = p_app AND c.task_id = j.task_id
  )
  SELECT json_object_agg(task_id, told) FILTER (WHERE passes = 'again' OR (passes = 'paused' AND is_there)),
    json_agg(json_build_array(flag, p_replica || ' ' || task_id, details, passes)) FILTER (WHERE passes = 'paused' AND is_there)
  INTO v_told, v_passed FROM judged;
  IF v_passed IS NOT NULL THEN
    PERFORM lockbeat_pass(p_app, v_passed);
  END IF;
  WITH taken AS (
    UPDATE lockbeat_claim SET replica = p_replica, until = v_now + p_ttl
    WHERE app = p_app AND until <= v_now AND task_id IN (SELECT x->>0 FROM json_array_elements(p_asked) x)
    RETURNING task_id
  )
  SELECT json_agg(task_id) INTO v_taken FROM taken;
  RETURN json_build_array(coalesce(v_taken, '[]'), coalesce(v_told, '{}'));
END $$;
