-- Locks with more than one holder. The row of such a lock in lockbeat_lock is nobody's: its holder is one byte that no text is
-- written with, its token the last of all holders', and it ends with the one that ends last. So the functions of 0001, which know of
-- one holder alone, find it held, or free. The holders are here; holder '': released, and kept for longer, or only known to
-- have been. All that changes them locks the row in lockbeat_lock first. Times as in 0001.
CREATE TABLE IF NOT EXISTS lockbeat_wide (
  key bytea, token bigint, until bigint NOT NULL, holder bytea NOT NULL, run bytea NOT NULL, description bytea NOT NULL,
  PRIMARY KEY (key, token)
) WITH (fillfactor = 50);
CREATE INDEX IF NOT EXISTS lockbeat_wide_until ON lockbeat_wide (until);

-- Written so that a later migration that is undone can put these back.

-- Write what the holders of a lock have in common; NULL: the last token stays.
CREATE OR REPLACE FUNCTION lockbeat_summarize(p_key bytea, p_token bigint, p_memory bigint) RETURNS void LANGUAGE sql AS $$
  UPDATE lockbeat_lock SET
    token = coalesce(p_token, token), holder = '\xff', run = '', description = '', until = latest, forget = latest + p_memory
  FROM (SELECT max(until) AS latest FROM lockbeat_wide WHERE key = p_key) wide
  WHERE key = p_key
$$;

-- Take a key, as lockbeat_acquire does, of which so many may be held at a time.
CREATE OR REPLACE FUNCTION lockbeat_take(
  p_key bytea, p_holder bytea, p_run bytea, p_whole bytea, p_ttl bigint, p_memory bigint, p_description bytea,
  p_waits_until bigint, p_limit bigint
) RETURNS json LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint;
  v_token bigint;
  v_answer json;
  v_lock lockbeat_lock;
  v_other lockbeat_wide;
  v_others bigint;
  v_whole boolean;
BEGIN
  IF p_limit = 1 THEN
    v_answer := lockbeat_acquire(p_key, p_holder, p_run, p_whole, p_ttl, p_memory, p_description, p_waits_until);
    IF v_answer->>0 <> 'held' OR NOT EXISTS (SELECT FROM lockbeat_lock WHERE key = p_key AND holder = '\xff') THEN
      RETURN v_answer;
    END IF;
  END IF;
  v_now := lockbeat_now();
  INSERT INTO lockbeat_lock VALUES (p_key, 0, 0, '', '', '', v_now + p_memory) ON CONFLICT DO NOTHING;
  SELECT * INTO v_lock FROM lockbeat_lock WHERE key = p_key FOR UPDATE;
  IF NOT FOUND THEN
    -- it was deleted in between
    RAISE EXCEPTION USING ERRCODE = '40001', MESSAGE = 'the row of the lock is gone';
  END IF;
  v_now := lockbeat_now();
  IF p_run IS NOT NULL THEN
    SELECT bool_or(run = sha256(p_whole)) INTO v_whole FROM lockbeat_done
    WHERE key = p_key AND run IN (sha256(p_run), sha256(p_whole)) AND forget > v_now HAVING count(*) > 0;
    IF FOUND THEN
      RETURN json_build_array('finished', coalesce(v_whole, false));
    END IF;
  END IF;
  IF v_now > p_waits_until THEN
    RETURN json_build_array('late', v_now);
  END IF;
  IF v_lock.holder <> '\xff' THEN
    -- who has had the key alone has it among others from now on
    DELETE FROM lockbeat_wide WHERE key = p_key;
    IF v_lock.until > v_now THEN
      INSERT INTO lockbeat_wide VALUES (p_key, v_lock.token, v_lock.until, v_lock.holder, v_lock.run, v_lock.description);
    END IF;
  END IF;
  SELECT token INTO v_token FROM lockbeat_wide WHERE key = p_key AND holder = p_holder AND until > v_now;
  IF v_token IS NULL THEN
    SELECT count(*) INTO v_others FROM lockbeat_wide WHERE key = p_key AND until > v_now;
    SELECT * INTO v_other FROM lockbeat_wide WHERE key = p_key AND until > v_now ORDER BY run <> p_run, until LIMIT 1;
    IF v_others >= p_limit OR v_other.run = p_run THEN
      IF v_lock.holder <> '\xff' THEN
        DELETE FROM lockbeat_wide WHERE key = p_key;
      END IF;
      RETURN json_build_array('held', v_other.until - v_now, p_run IS NOT NULL AND v_other.run = p_run,
        encode(v_other.run, 'hex'), encode(v_other.description, 'hex'));
    END IF;
    v_token := greatest(v_now, v_lock.token + 1);
  END IF;
  DELETE FROM lockbeat_wide WHERE key = p_key AND (until <= v_now OR token = v_token);
  INSERT INTO lockbeat_wide VALUES (p_key, v_token, v_now + p_ttl, p_holder, coalesce(p_run, ''), p_description);
  PERFORM lockbeat_summarize(p_key, greatest(v_token, v_lock.token), p_memory);
  RETURN json_build_array('granted', v_now, v_token);
END $$;

-- As lockbeat_extend.
CREATE OR REPLACE FUNCTION lockbeat_prolong(p_leases json, p_memory bigint) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_answers json := lockbeat_extend(p_leases, p_memory);
  v_told boolean[] := '{}';
  v_lease json;
  v_extended boolean;
  v_key bytea;
BEGIN
  FOR i IN 0 .. json_array_length(p_leases) - 1 LOOP
    v_extended := (v_answers->>i)::boolean;
    IF NOT v_extended THEN
      v_lease := p_leases->i;
      v_key := decode(v_lease->>0, 'hex');
      PERFORM FROM lockbeat_lock WHERE key = v_key AND holder = '\xff' FOR UPDATE;
      IF FOUND THEN
        UPDATE lockbeat_wide SET until = lockbeat_now() + (v_lease->>3)::bigint
        WHERE key = v_key AND token = (v_lease->>1)::bigint AND holder = decode(v_lease->>2, 'hex') AND until > lockbeat_now();
        v_extended := FOUND;
        IF v_extended THEN
          PERFORM lockbeat_summarize(v_key, NULL, p_memory);
        END IF;
      END IF;
    END IF;
    v_told := v_told || v_extended;
  END LOOP;
  RETURN to_json(v_told);
END $$;

-- As lockbeat_release, which is asked first: a lock may get more holders at any moment, but not fewer than this one.
CREATE OR REPLACE FUNCTION lockbeat_end(
  p_key bytea, p_token bigint, p_holder bytea, p_run bytea, p_hold bigint, p_remember bigint, p_memory bigint
) RETURNS json LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_answer json := lockbeat_release(p_key, p_token, p_holder, p_run, p_hold, p_remember, p_memory);
  v_holder bytea;
BEGIN
  IF v_answer::text = 'true' THEN
    RETURN v_answer;
  END IF;
  PERFORM FROM lockbeat_lock WHERE key = p_key AND holder = '\xff' FOR UPDATE;
  IF NOT FOUND THEN
    RETURN v_answer;
  END IF;
  UPDATE lockbeat_wide SET until = lockbeat_now() + p_hold, holder = ''
  WHERE key = p_key AND token = p_token AND holder = p_holder AND until > lockbeat_now();
  IF FOUND THEN
    PERFORM lockbeat_summarize(p_key, NULL, p_memory);
    IF p_run IS NOT NULL AND p_remember > 0 THEN
      INSERT INTO lockbeat_done VALUES (p_key, sha256(p_run), p_token, lockbeat_now() + p_remember)
      ON CONFLICT (key, run) DO UPDATE SET token = EXCLUDED.token, forget = EXCLUDED.forget;
    END IF;
    RETURN to_json(true);
  END IF;
  SELECT holder INTO v_holder FROM lockbeat_wide WHERE key = p_key AND token = p_token;
  RETURN to_json(coalesce(v_holder = '', false));
END $$;

-- As lockbeat_free.
CREATE OR REPLACE FUNCTION lockbeat_drop(p_key bytea, p_holder bytea, p_memory bigint) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_answer json := lockbeat_free(p_key, p_holder, p_memory);
BEGIN
  IF v_answer::text = 'true' THEN
    RETURN v_answer;
  END IF;
  PERFORM FROM lockbeat_lock WHERE key = p_key AND holder = '\xff' FOR UPDATE;
  IF NOT FOUND THEN
    RETURN v_answer;
  END IF;
  UPDATE lockbeat_wide SET until = lockbeat_now(), holder = ''
  WHERE key = p_key AND holder = p_holder AND until > lockbeat_now();
  IF NOT FOUND THEN
    RETURN v_answer;
  END IF;
  PERFORM lockbeat_summarize(p_key, NULL, p_memory);
  RETURN to_json(true);
END $$;

-- As lockbeat_locks.
CREATE OR REPLACE FUNCTION lockbeat_held(p_key bytea, p_prefix bytea, p_limit bigint) RETURNS json LANGUAGE sql AS $$
  SELECT coalesce(json_agg(json_build_array(
    encode(key, 'hex'), encode(holder, 'hex'), encode(description, 'hex'), encode(run, 'hex'), token, until - lockbeat_now()
  )), '[]')
  FROM (
    SELECT key, holder, description, run, token, until FROM lockbeat_lock
    WHERE until > lockbeat_now() AND holder <> '\xff'
      AND CASE WHEN p_key IS NULL THEN substring(key FROM 2 FOR length(p_prefix)) = p_prefix ELSE key = p_key END
    UNION ALL
    SELECT w.key, w.holder, w.description, w.run, w.token, w.until FROM lockbeat_wide w JOIN lockbeat_lock l USING (key)
    WHERE w.until > lockbeat_now() AND l.holder = '\xff'
      AND CASE WHEN p_key IS NULL THEN substring(key FROM 2 FOR length(p_prefix)) = p_prefix ELSE key = p_key END
    LIMIT p_limit
  ) held
$$;

-- As lockbeat_purge. What was released is known to have been for an hour: TOKEN_MEMORY of stores/base.py.
CREATE OR REPLACE FUNCTION lockbeat_clean(p_limit int) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM lockbeat_wide WHERE (key, token) IN (
    SELECT key, token FROM lockbeat_wide WHERE until < lockbeat_now() - 3600000000 LIMIT p_limit FOR UPDATE SKIP LOCKED
  );
  RETURN lockbeat_purge(p_limit);
END $$;
