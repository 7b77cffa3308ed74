-- The `database` store in PostgreSQL: one function, one statement, one round trip per operation of stores/base.py.
--
-- Times are clock_timestamp()'s, in microseconds since the epoch; now() would be the beginning of the transaction, which
-- may have waited for another. Keys and names are at most some 500 bytes: the client cuts longer ones (see store.py).
-- Each function that waits for a row of another's gives up after a second: who asked waits for two.
-- Atomic: in READ COMMITTED, which the client makes sure of, each statement sees what was committed before it. So what
-- must be seen together is looked at when the row that it hangs on has been locked.

CREATE FUNCTION lockbeat_now() RETURNS bigint LANGUAGE sql VOLATILE AS
  'SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint';

-- holder '': released, and kept for longer. forget: until when the token is remembered; in no index, so that what is
-- written often stays on its page (HOT), for which there is room there.
CREATE TABLE lockbeat_lock (
  key bytea PRIMARY KEY, token bigint NOT NULL, until bigint NOT NULL, holder bytea NOT NULL, run bytea NOT NULL,
  description bytea NOT NULL, forget bigint NOT NULL
) WITH (fillfactor = 50);

-- A finished run, by its digest, and the token that finished it.
CREATE TABLE lockbeat_done (
  key bytea, run bytea, token bigint NOT NULL, forget bigint NOT NULL, PRIMARY KEY (key, run)
);
CREATE INDEX lockbeat_done_forget ON lockbeat_done (forget);

-- Of the beats. The row of an app is locked by each operation of its beats: they go one after the other.
CREATE TABLE lockbeat_app (app bytea PRIMARY KEY, cold_start bigint);
-- seen 0: it has left
CREATE TABLE lockbeat_replica (
  app bytea, name text, seen bigint NOT NULL, complete boolean NOT NULL, PRIMARY KEY (app, name)
) WITH (fillfactor = 50);
-- unlisted: since when no replica lists it
CREATE TABLE lockbeat_entry (
  app bytea, name bytea, count bigint NOT NULL, last_run_at bytea NOT NULL, unlisted bigint, PRIMARY KEY (app, name)
) WITH (fillfactor = 50);
CREATE INDEX lockbeat_entry_unlisted ON lockbeat_entry (app, unlisted) WHERE unlisted IS NOT NULL;
CREATE TABLE lockbeat_listed (app bytea, name bytea, replica text, PRIMARY KEY (app, name, replica));
CREATE INDEX lockbeat_listed_replica ON lockbeat_listed (app, replica);
-- exact: the name of the entry, however long
CREATE TABLE lockbeat_claim (
  app bytea, task_id text, entry bytea NOT NULL, exact bytea NOT NULL, run bigint NOT NULL, replica text NOT NULL,
  until bigint NOT NULL, details text NOT NULL, PRIMARY KEY (app, task_id)
);
CREATE INDEX lockbeat_claim_until ON lockbeat_claim (app, until);
CREATE INDEX lockbeat_claim_entry ON lockbeat_claim (app, entry);

-- Take a key: ["granted", now, token], ["finished", as a whole], ["late", now] or ["held", remaining, same run, run, description].
-- waits_until: until when anybody waits for the answer; NULL: not known. A server that hung carries out what it was sent
-- meanwhile: a lock that nobody waits for any more would be nobody's, for a whole ttl.
CREATE FUNCTION lockbeat_acquire(
  p_key bytea, p_holder bytea, p_run bytea, p_whole bytea, p_ttl bigint, p_memory bigint, p_description bytea,
  p_waits_until bigint
) RETURNS json LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint;
  v_token bigint;
  v_lock lockbeat_lock;
  v_whole boolean;
BEGIN
  LOOP
    v_now := lockbeat_now();
    IF v_now > p_waits_until THEN
      RETURN json_build_array('late', v_now);
    END IF;
    UPDATE lockbeat_lock SET
      token = CASE WHEN holder = p_holder AND until > lockbeat_now() THEN token ELSE greatest(lockbeat_now(), token + 1) END,
      until = lockbeat_now() + p_ttl, holder = p_holder, run = coalesce(p_run, ''), description = p_description,
      forget = lockbeat_now() + p_ttl + p_memory
    WHERE key = p_key AND (until <= lockbeat_now() OR holder = p_holder)
    RETURNING token INTO v_token;
    IF NOT FOUND THEN
      SELECT * INTO v_lock FROM lockbeat_lock WHERE key = p_key;
      IF NOT FOUND THEN
        INSERT INTO lockbeat_lock
        VALUES (p_key, v_now, v_now + p_ttl, p_holder, coalesce(p_run, ''), p_description, v_now + p_ttl + p_memory)
        ON CONFLICT DO NOTHING RETURNING token INTO v_token;
      END IF;
    END IF;
    -- Now that its row is ours: whoever finished our run marked it together with the end of its lock.
    IF p_run IS NOT NULL THEN
      SELECT bool_or(run = sha256(p_whole)) INTO v_whole FROM lockbeat_done
      WHERE key = p_key AND run IN (sha256(p_run), sha256(p_whole)) AND forget > lockbeat_now() HAVING count(*) > 0;
    END IF;
    IF FOUND AND p_run IS NOT NULL THEN
      IF v_token IS NOT NULL THEN
        UPDATE lockbeat_lock SET until = lockbeat_now(), holder = '' WHERE key = p_key;
      END IF;
      RETURN json_build_array('finished', coalesce(v_whole, false));
    END IF;
    IF v_token IS NOT NULL THEN
      IF lockbeat_now() > p_waits_until THEN
        RAISE EXCEPTION USING ERRCODE = 'LB001', MESSAGE = lockbeat_now()::text;
      END IF;
      RETURN json_build_array('granted', v_now, v_token);
    END IF;
    v_now := lockbeat_now();
    IF v_lock.until > v_now THEN
      RETURN json_build_array('held', v_lock.until - v_now, p_run IS NOT NULL AND v_lock.run = p_run,
        encode(v_lock.run, 'hex'), encode(v_lock.description, 'hex'));
    END IF;
    -- it has become free meanwhile
  END LOOP;
END $$;

-- Let each live lease end `ttl` from now; false: it is lost.
CREATE FUNCTION lockbeat_extend(p_leases json, p_memory bigint) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_lease json;
  v_answers boolean[] := '{}';
BEGIN
  FOR v_lease IN SELECT json_array_elements(p_leases) LOOP
    UPDATE lockbeat_lock SET
      until = lockbeat_now() + (v_lease->>3)::bigint, forget = lockbeat_now() + (v_lease->>3)::bigint + p_memory
    WHERE key = decode(v_lease->>0, 'hex') AND token = (v_lease->>1)::bigint AND holder = decode(v_lease->>2, 'hex')
      AND until > lockbeat_now();
    v_answers := v_answers || FOUND;
  END LOOP;
  RETURN to_json(v_answers);
END $$;

-- End a live lease, and remember its run as finished: one fact, for a copy of the message must never find the key free and
-- the run unknown. Again: true once more, as long as that can be told.
CREATE FUNCTION lockbeat_release(
  p_key bytea, p_token bigint, p_holder bytea, p_run bytea, p_hold bigint, p_remember bigint, p_memory bigint
) RETURNS json LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_lock lockbeat_lock;
BEGIN
  -- the token stays, as the counter; without a holder it can be neither extended nor released
  UPDATE lockbeat_lock SET
    until = lockbeat_now() + p_hold, holder = '', forget = lockbeat_now() + p_hold + p_memory
  WHERE key = p_key AND token = p_token AND holder = p_holder AND until > lockbeat_now();
  IF FOUND THEN
    IF p_run IS NOT NULL AND p_remember > 0 THEN
      INSERT INTO lockbeat_done VALUES (p_key, sha256(p_run), p_token, lockbeat_now() + p_remember)
      ON CONFLICT (key, run) DO UPDATE SET token = EXCLUDED.token, forget = EXCLUDED.forget;
    END IF;
    RETURN to_json(true);
  END IF;
  SELECT * INTO v_lock FROM lockbeat_lock WHERE key = p_key;
  IF v_lock.token = p_token THEN
    RETURN to_json(v_lock.holder = '');
  END IF;
  -- another came after us: was our release carried out before?
  RETURN to_json(p_run IS NOT NULL AND EXISTS (
    SELECT FROM lockbeat_done
    WHERE key = p_key AND run = sha256(p_run) AND token = p_token AND forget > lockbeat_now()
  ));
END $$;

-- End whatever live lease a holder has, without its token.
CREATE FUNCTION lockbeat_free(p_key bytea, p_holder bytea, p_memory bigint) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
BEGIN
  UPDATE lockbeat_lock SET until = lockbeat_now(), holder = '', forget = lockbeat_now() + p_memory
  WHERE key = p_key AND holder = p_holder AND until > lockbeat_now();
  RETURN to_json(FOUND);
END $$;

-- Delete some of what is remembered no more, and leave to others what they have in their hands.
CREATE FUNCTION lockbeat_purge(p_limit int) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM lockbeat_lock WHERE key IN (
    SELECT key FROM lockbeat_lock WHERE forget < lockbeat_now() LIMIT p_limit FOR UPDATE SKIP LOCKED
  );
  DELETE FROM lockbeat_done WHERE (key, run) IN (
    SELECT key, run FROM lockbeat_done WHERE forget < lockbeat_now() LIMIT p_limit FOR UPDATE SKIP LOCKED
  );
  RETURN to_json(true);
END $$;

-- Let this be the only operation of the app's beats until the end of the transaction; the time at which it begins.
CREATE FUNCTION lockbeat_alone(p_app bytea) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
  LOOP
    PERFORM FROM lockbeat_app WHERE app = p_app FOR UPDATE;
    IF FOUND THEN
      RETURN lockbeat_now();
    END IF;
    INSERT INTO lockbeat_app VALUES (p_app) ON CONFLICT DO NOTHING;
  END LOOP;
END $$;

-- Whether a replica that is there has not listed all of its entries yet.
CREATE FUNCTION lockbeat_somebody_lists(p_app bytea, p_alive_since bigint) RETURNS boolean LANGUAGE sql VOLATILE AS
  'SELECT EXISTS (SELECT FROM lockbeat_replica WHERE app = p_app AND seen > p_alive_since AND NOT complete)';

-- Count a replica in: [cold start, now].
CREATE FUNCTION lockbeat_join(p_app bytea, p_replica text, p_alive bigint, p_cold_start bigint) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint := lockbeat_alone(p_app);
  v_cold_start bigint;
BEGIN
  SELECT coalesce(cold_start, p_cold_start, v_now) INTO v_cold_start FROM lockbeat_app WHERE app = p_app;
  IF p_cold_start IS NULL AND NOT EXISTS (
    SELECT FROM lockbeat_replica WHERE app = p_app AND name <> p_replica AND seen > v_now - p_alive
  ) THEN
    v_cold_start := v_now;
  END IF;
  UPDATE lockbeat_app SET cold_start = v_cold_start WHERE app = p_app;
  DELETE FROM lockbeat_listed WHERE app = p_app AND replica = p_replica;
  INSERT INTO lockbeat_replica VALUES (p_app, p_replica, v_now, false)
  ON CONFLICT (app, name) DO UPDATE SET seen = v_now, complete = false;
  RETURN json_build_array(v_cold_start, v_now);
END $$;

-- Change what a replica lists, [[name, count, last_run_at]...] and [name...]; the state of each one added.
CREATE FUNCTION lockbeat_list(
  p_app bytea, p_replica text, p_alive bigint, p_entries json, p_removed json, p_complete boolean
) RETURNS json LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint := lockbeat_alone(p_app);
BEGIN
  INSERT INTO lockbeat_replica AS r VALUES (p_app, p_replica, v_now, p_complete)
  ON CONFLICT (app, name) DO UPDATE SET seen = v_now, complete = r.complete OR p_complete;
  IF json_array_length(p_removed) > 0 THEN
    DELETE FROM lockbeat_listed WHERE app = p_app AND replica = p_replica
      AND name IN (SELECT decode(x, 'hex') FROM json_array_elements_text(p_removed) x);
    IF NOT lockbeat_somebody_lists(p_app, v_now - p_alive) THEN
      UPDATE lockbeat_entry e SET unlisted = v_now WHERE app = p_app AND unlisted IS NULL
        AND name IN (SELECT decode(x, 'hex') FROM json_array_elements_text(p_removed) x)
        AND NOT EXISTS (SELECT FROM lockbeat_listed l WHERE l.app = e.app AND l.name = e.name);
    END IF;
  END IF;
  INSERT INTO lockbeat_listed SELECT p_app, decode(x->>0, 'hex'), p_replica FROM json_array_elements(p_entries) x
  ON CONFLICT DO NOTHING;
  INSERT INTO lockbeat_entry AS e
  SELECT p_app, decode(x->>0, 'hex'), (x->>1)::bigint, decode(x->>2, 'hex') FROM json_array_elements(p_entries) x
  ON CONFLICT (app, name) DO UPDATE SET last_run_at = EXCLUDED.last_run_at, unlisted = NULL
  WHERE e.unlisted IS NOT NULL;
  RETURN coalesce((
    SELECT json_agg(json_build_array(e.count, encode(e.last_run_at, 'hex')) ORDER BY n)
    FROM json_array_elements(p_entries) WITH ORDINALITY x(given, n)
    JOIN lockbeat_entry e ON e.app = p_app AND e.name = decode(given->>0, 'hex')
  ), '[]');
END $$;

-- Claim ticks, [[entry, exact name, run, last_run_at, task id, details]...]; tell what is overdue; forget what nobody
-- lists any more: [now, listed, microseconds until the next is overdue, [refusal or null...], [[task id, exact name, run,
-- details]...]].
CREATE FUNCTION lockbeat_claim(
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
        decode(x->>3, 'hex') AS last_run_at, x->>4 AS task_id, x->>5 AS details
      FROM json_array_elements(p_claims) WITH ORDINALITY a(x, n)
    ), judged AS MATERIALIZED (
      SELECT a.*, e.count, e.last_run_at AS stored,
        CASE
          -- its answer was lost
          WHEN c.replica = p_replica THEN 'again'
          WHEN c.replica IS NOT NULL OR e.count >= a.run THEN 'refused'
          WHEN e.count IS NOT NULL AND p_backlog <= (
            SELECT count(*) FROM lockbeat_claim p WHERE p.app = p_app AND p.entry = a.entry
          ) THEN 'refused'
          -- with a smaller count than expected the state was lost in part: the replica knows better
          ELSE 'new'
        END AS verdict
      FROM asked a
      LEFT JOIN lockbeat_entry e ON e.app = p_app AND e.name = a.entry
      LEFT JOIN lockbeat_claim c ON c.app = p_app AND c.task_id = a.task_id
    ), moved AS (
      INSERT INTO lockbeat_entry SELECT p_app, entry, run, last_run_at FROM judged WHERE verdict = 'new'
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

-- Make overdue claims one's own; the ids of those that are.
CREATE FUNCTION lockbeat_take_over(p_app bytea, p_replica text, p_ids json, p_ttl bigint) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint := lockbeat_alone(p_app);
  v_taken json;
BEGIN
  WITH taken AS (
    UPDATE lockbeat_claim SET replica = p_replica, until = v_now + p_ttl
    WHERE app = p_app AND until <= v_now AND task_id IN (SELECT json_array_elements_text(p_ids))
    RETURNING task_id
  )
  SELECT json_agg(task_id) INTO v_taken FROM taken;
  RETURN coalesce(v_taken, '[]');
END $$;

-- Forget one's own claims that are published, and hand over others; the ids of those forgotten.
CREATE FUNCTION lockbeat_settle(p_app bytea, p_replica text, p_published json, p_handed_over json) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint := lockbeat_alone(p_app);
  v_settled json;
BEGIN
  UPDATE lockbeat_claim SET until = v_now
  WHERE app = p_app AND replica = p_replica AND task_id IN (SELECT json_array_elements_text(p_handed_over));
  WITH settled AS (
    DELETE FROM lockbeat_claim
    WHERE app = p_app AND replica = p_replica AND task_id IN (SELECT json_array_elements_text(p_published))
    RETURNING task_id
  )
  SELECT json_agg(task_id) INTO v_settled FROM settled;
  RETURN coalesce(v_settled, '[]');
END $$;

-- Count a replica out. What it lists stays until somebody else is there who lists something.
CREATE FUNCTION lockbeat_leave(p_app bytea, p_replica text) RETURNS json LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
BEGIN
  PERFORM lockbeat_alone(p_app);
  UPDATE lockbeat_replica SET seen = 0 WHERE app = p_app AND name = p_replica;
  RETURN to_json(true);
END $$;

-- For operators: [key, holder, description, run, token, remaining]... of the locks held now, all those of a prefix or one.
CREATE FUNCTION lockbeat_locks(p_key bytea, p_prefix bytea, p_limit bigint) RETURNS json LANGUAGE sql AS $$
  SELECT coalesce(json_agg(json_build_array(
    encode(key, 'hex'), encode(holder, 'hex'), encode(description, 'hex'), encode(run, 'hex'), token, until - lockbeat_now()
  )), '[]')
  FROM (
    SELECT * FROM lockbeat_lock
    WHERE until > lockbeat_now()
      AND CASE WHEN p_key IS NULL THEN substring(key FROM 2 FOR length(p_prefix)) = p_prefix ELSE key = p_key END
    LIMIT p_limit
  ) held
$$;

-- For operators: [[replica, time since it was heard of or NULL, [entry...], complete]..., [entry, count, last_run_at,
-- pending]..., count of the overdue].
CREATE FUNCTION lockbeat_beats(p_app bytea, p_limit bigint) RETURNS json LANGUAGE sql AS $$
  SELECT json_build_array(
    (SELECT coalesce(json_agg(json_build_array(
       name, CASE WHEN seen > 0 THEN lockbeat_now() - seen END,
       (SELECT coalesce(json_agg(encode(listed.name, 'hex')), '[]')
        FROM (SELECT l.name FROM lockbeat_listed l WHERE l.app = p_app AND l.replica = r.name LIMIT p_limit) listed),
       complete
     )), '[]') FROM (SELECT * FROM lockbeat_replica WHERE app = p_app LIMIT p_limit) r),
    (SELECT coalesce(json_agg(json_build_array(
       encode(name, 'hex'), count, encode(last_run_at, 'hex'),
       (SELECT count(*) FROM lockbeat_claim c WHERE c.app = p_app AND c.entry = e.name)
     )), '[]') FROM (SELECT * FROM lockbeat_entry WHERE app = p_app LIMIT p_limit) e),
    (SELECT count(*) FROM lockbeat_claim WHERE app = p_app AND until <= lockbeat_now())
  )
$$;
