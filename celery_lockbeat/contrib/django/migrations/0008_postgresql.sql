-- The messages for which a lock's key is reserved, by key and task. Times as in 0001.
CREATE TABLE lockbeat_reserved (
  key bytea, name bytea, task_id bytea NOT NULL, token text NOT NULL, until bigint NOT NULL, PRIMARY KEY (key, name)
);
CREATE INDEX lockbeat_reserved_until ON lockbeat_reserved (until);

-- Reserve a key for a message: null; or ["reserved", task id, token] of the other one, or ["held", remaining, run, description] of
-- a run that says so of itself.
-- The lock is looked at when the row is ours, in a statement of its own: a run that takes the lock deletes its reservation with it,
-- so whoever has waited for that row sees the lock. Deletes two that are over: one that is made leaves no more than one behind; at
-- the end, for who has a row of another's in its hands must not wait for a third.
CREATE FUNCTION lockbeat_reserve(
  p_key bytea, p_name bytea, p_task_id bytea, p_token text, p_ttl bigint, p_run_by bytea
) RETURNS json LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_there lockbeat_reserved;
  v_until bigint;
  v_run bytea;
  v_description bytea;
BEGIN
  LOOP
    UPDATE lockbeat_reserved SET until = lockbeat_now() + p_ttl
    WHERE key = p_key AND name = p_name AND task_id = p_task_id AND token = p_token AND until > lockbeat_now();
    IF FOUND THEN
      RETURN 'null';
    END IF;
    INSERT INTO lockbeat_reserved AS r VALUES (p_key, p_name, p_task_id, p_token, lockbeat_now() + p_ttl)
    ON CONFLICT (key, name) DO UPDATE
    SET task_id = EXCLUDED.task_id, token = EXCLUDED.token, until = EXCLUDED.until
    WHERE r.until <= lockbeat_now();
    EXIT WHEN FOUND;
    SELECT * INTO v_there FROM lockbeat_reserved WHERE key = p_key AND name = p_name AND until > lockbeat_now();
    IF FOUND THEN
      RETURN json_build_array('reserved', encode(v_there.task_id, 'hex'), v_there.token);
    END IF;
    -- it is over meanwhile
  END LOOP;
  IF p_run_by IS NOT NULL THEN
    SELECT until, run, description INTO v_until, v_run, v_description FROM (
      SELECT until, holder, run, description FROM lockbeat_lock WHERE key = p_key AND holder <> '\xff'
      UNION ALL
      SELECT w.until, w.holder, w.run, w.description FROM lockbeat_wide w JOIN lockbeat_lock l USING (key)
      WHERE w.key = p_key AND l.holder = '\xff'
    ) held
    WHERE until > lockbeat_now() AND holder <> '' AND run <> '' AND position(p_run_by IN description) > 0 LIMIT 1;
    IF FOUND THEN
      DELETE FROM lockbeat_reserved WHERE key = p_key AND name = p_name;
      RETURN json_build_array('held', v_until - lockbeat_now(), encode(v_run, 'hex'), encode(v_description, 'hex'));
    END IF;
  END IF;
  DELETE FROM lockbeat_reserved WHERE (key, name) IN (
    SELECT key, name FROM lockbeat_reserved WHERE until <= lockbeat_now() LIMIT 2 FOR UPDATE SKIP LOCKED
  );
  RETURN 'null';
END $$;

-- End a reservation; false: it is over, or another's.
CREATE FUNCTION lockbeat_unreserve(p_key bytea, p_name bytea, p_task_id bytea, p_token text) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_live boolean;
BEGIN
  DELETE FROM lockbeat_reserved WHERE key = p_key AND name = p_name AND task_id = p_task_id AND token = p_token
  RETURNING until > lockbeat_now() INTO v_live;
  RETURN to_json(coalesce(v_live, false));
END $$;

-- As lockbeat_take; with the lock, the reservation of its message is over.
CREATE FUNCTION lockbeat_acquire_reserved(
  p_key bytea, p_holder bytea, p_run bytea, p_whole bytea, p_ttl bigint, p_memory bigint, p_description bytea,
  p_waits_until bigint, p_limit bigint, p_name bytea, p_task_id bytea, p_token text
) RETURNS json LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_answer json := lockbeat_take(
    p_key, p_holder, p_run, p_whole, p_ttl, p_memory, p_description, p_waits_until, p_limit
  );
BEGIN
  IF v_answer->>0 = 'granted' THEN
    DELETE FROM lockbeat_reserved WHERE key = p_key AND name = p_name AND task_id = p_task_id AND token = p_token;
  END IF;
  RETURN v_answer;
END $$;
