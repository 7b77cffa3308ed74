-- Who has taken the place of one that was superseded, beside the mark that says so; and who waits already where one may. The answers to
-- earlier releases, which do not ask who it is, are as they were.
ALTER TABLE lockbeat_done ADD COLUMN who bytea;

-- As in 0013; where there is no place, with who has it, in hex, behind.
CREATE OR REPLACE FUNCTION lockbeat_wait(p_key bytea, p_place json, p_since bigint, p_description bytea) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
  v_now bigint := lockbeat_now();
  v_ticket bytea := decode(p_place->>'ticket', 'hex');
  v_known lockbeat_line;
  v_is_known boolean;
  v_for bigint := (p_place->>'for')::bigint;
  v_began bigint := (p_place->>'began')::bigint;
  v_copy bigint := (p_place->>'copy')::bigint + 1;
  v_renewed bigint := v_now;
  v_text text := replace(p_place->>'text', '"@since"', p_since::text);
  v_others bigint;
  v_why text := '';
  v_who bytea;
  v_calls text[] := '{}';
BEGIN
  SELECT * INTO v_known FROM lockbeat_line WHERE key = p_key AND ticket = v_ticket;
  v_is_known := FOUND;
  v_began := CASE WHEN v_is_known THEN v_known.began WHEN v_began > 0 THEN least(v_began, v_now) ELSE v_now END;
  SELECT count(*) INTO v_others FROM lockbeat_line
  WHERE key = p_key AND ticket <> v_ticket AND called IS NULL AND until > v_now;
  IF v_began + v_for <= v_now THEN
    v_why := 'waited';
  ELSIF p_place->>'kind' = 'one' AND NOT v_is_known AND (
    v_others > 0 OR EXISTS (SELECT FROM lockbeat_line WHERE key = p_key AND called > v_now)
  ) THEN
    v_why := 'queued';
    SELECT description INTO v_who FROM lockbeat_line
    WHERE key = p_key AND (called > v_now OR called IS NULL AND until > v_now) ORDER BY called IS NULL, since LIMIT 1;
  ELSIF p_place->>'kind' IN ('latest', 'replace') THEN
    SELECT description INTO v_who FROM lockbeat_line
    WHERE key = p_key AND ticket <> v_ticket AND called IS NULL AND until > v_now AND kind = p_place->>'kind' AND since > p_since
    LIMIT 1;
    IF FOUND THEN
      v_why := 'superseded';
      INSERT INTO lockbeat_done VALUES (p_key, decode(p_place->>'mark', 'hex'), 1, v_now + 3600000000, v_who)
      ON CONFLICT (key, run) DO UPDATE SET token = EXCLUDED.token, forget = EXCLUDED.forget, who = EXCLUDED.who;
    ELSE
      WITH older AS (
        DELETE FROM lockbeat_line
        WHERE key = p_key AND ticket <> v_ticket AND called IS NULL AND until > v_now AND kind = p_place->>'kind'
        RETURNING mark, text
      ), marked AS (
        INSERT INTO lockbeat_done SELECT p_key, mark, 1, v_now + 3600000000, p_description FROM older
        ON CONFLICT (key, run) DO UPDATE SET token = EXCLUDED.token, forget = EXCLUDED.forget, who = EXCLUDED.who
      )
      SELECT coalesce(array_agg(text), '{}') INTO v_calls FROM older;
    END IF;
  ELSIF NOT v_is_known AND v_others >= (p_place->>'room')::bigint THEN
    v_why := 'full';
  END IF;
  IF v_why <> '' THEN
    DELETE FROM lockbeat_line WHERE key = p_key AND ticket = v_ticket;
    RETURN json_build_array('', v_why, to_json(v_calls), encode(v_who, 'hex'));
  END IF;
  IF v_is_known AND v_copy - 1 < v_known.copy - (p_place->>'again')::boolean::int AND v_now - v_known.renewed < 90000000 THEN
    v_copy := 0;
    v_renewed := v_known.renewed;
    v_text := v_known.text;
  ELSIF v_is_known THEN
    v_copy := greatest(v_copy, v_known.copy);
  END IF;
  INSERT INTO lockbeat_line VALUES (
    p_key, v_ticket, p_since, v_began + v_for, v_began, (p_place->>'grace')::bigint,
    CASE WHEN v_copy > 0 THEN v_copy ELSE v_known.copy END, v_renewed, p_place->>'kind', decode(p_place->>'mark', 'hex'), p_description,
    v_text, NULL
  ) ON CONFLICT (key, ticket) DO UPDATE SET
    since = EXCLUDED.since, until = EXCLUDED.until, grace = EXCLUDED.grace, copy = EXCLUDED.copy, renewed = EXCLUDED.renewed,
    kind = EXCLUDED.kind, description = EXCLUDED.description, text = EXCLUDED.text, called = NULL;
  SELECT count(*) INTO v_others FROM lockbeat_line
  WHERE key = p_key AND ticket <> v_ticket AND called IS NULL AND until > v_now AND since < p_since;
  RETURN json_build_array('waiting', p_since, v_began, v_copy, v_others, to_json(v_calls));
END $$;

-- As in 0009, but that it says who has superseded one, and, where the place asks for it, who has the place.
CREATE OR REPLACE FUNCTION lockbeat_take(
  p_key bytea, p_holder bytea, p_run bytea, p_whole bytea, p_ttl bigint, p_memory bigint, p_description bytea,
  p_waits_until bigint, p_limit bigint, p_place json
) RETURNS json LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint;
  v_token bigint;
  v_is_new boolean;
  v_answer json;
  v_lock lockbeat_lock;
  v_was_wide boolean;
  v_first record;
  v_next lockbeat_line;
  v_others bigint;
  v_whole boolean;
  v_who text;
  v_since bigint := 9223372036854775807;
  v_ticket bytea := decode(p_place->>'ticket', 'hex');
  v_granted boolean;
  v_calls text[] := '{}';
BEGIN
  IF p_limit = 1 AND NOT EXISTS (SELECT FROM lockbeat_lock WHERE key = p_key AND holder = '\xff') THEN
    v_answer := lockbeat_acquire(p_key, p_holder, p_run, p_whole, p_ttl, p_memory, p_description, p_waits_until);
    IF v_answer->>0 NOT IN ('held', 'finished') OR v_answer->>0 = 'held' AND (v_answer->>2)::boolean OR (
      v_answer->>0 = 'held' AND p_place IS NULL
      AND NOT EXISTS (SELECT FROM lockbeat_lock WHERE key = p_key AND holder = '\xff')
    ) THEN
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
    SELECT bool_or(run = sha256(p_whole)), min(token), min(encode(who, 'hex')) FILTER (WHERE token = 1) INTO v_whole, v_token, v_who
    FROM lockbeat_done WHERE key = p_key AND run IN (sha256(p_run), sha256(p_whole)) AND forget > v_now HAVING count(*) > 0;
    IF FOUND THEN
      RETURN json_build_array('finished', coalesce(v_whole, false), v_token, v_who);
    END IF;
  END IF;
  IF v_now > p_waits_until THEN
    RETURN json_build_array('late', v_now);
  END IF;
  v_was_wide := v_lock.holder = '\xff';
  IF NOT v_was_wide THEN
    -- who has had the key alone has it among others from now on
    DELETE FROM lockbeat_wide WHERE key = p_key;
    IF v_lock.until > v_now THEN
      INSERT INTO lockbeat_wide VALUES (p_key, v_lock.token, v_lock.until, v_lock.holder, v_lock.run, v_lock.description);
    END IF;
  END IF;
  SELECT token INTO v_token FROM lockbeat_wide WHERE key = p_key AND holder = p_holder AND until > v_now;
  v_is_new := v_token IS NULL;
  IF v_is_new THEN
    SELECT until, run, description INTO v_first FROM lockbeat_wide WHERE key = p_key AND run = p_run AND until > v_now LIMIT 1;
    IF FOUND THEN
      IF NOT v_was_wide THEN
        DELETE FROM lockbeat_wide WHERE key = p_key;
      END IF;
      RETURN json_build_array('held', v_first.until - v_now, true, encode(v_first.run, 'hex'), encode(v_first.description, 'hex'));
    END IF;
  END IF;
  IF p_place IS NOT NULL THEN
    SELECT since INTO v_since FROM lockbeat_line WHERE key = p_key AND ticket = v_ticket;
    IF NOT FOUND THEN
      v_since := (p_place->>'since')::bigint;
    END IF;
    IF v_since = 0 THEN
      SELECT greatest(v_now, max(since) + 1) INTO v_since FROM lockbeat_line WHERE key = p_key AND called IS NULL;
    END IF;
    UPDATE lockbeat_line SET called = NULL WHERE key = p_key AND ticket = v_ticket;
  END IF;
  v_others := (SELECT count(*) FROM lockbeat_wide WHERE key = p_key AND until > v_now AND holder <> p_holder)
    + (SELECT count(*) FROM lockbeat_line WHERE key = p_key AND called > v_now);
  v_granted := NOT v_is_new;
  IF v_is_new AND v_others >= p_limit THEN
    SELECT * INTO v_next FROM lockbeat_line WHERE key = p_key AND called > v_now ORDER BY since DESC LIMIT 1;
    IF FOUND AND v_since < v_next.since THEN
      -- who is called came after us, and is not here yet: it waits on, in its place
      UPDATE lockbeat_line SET called = NULL WHERE key = p_key AND ticket = v_next.ticket;
      v_others := v_others - 1;
    END IF;
  END IF;
  WHILE NOT v_granted AND v_others < p_limit LOOP
    SELECT * INTO v_next FROM lockbeat_line
    WHERE key = p_key AND called IS NULL AND until > v_now ORDER BY since LIMIT 1;
    v_granted := NOT FOUND OR v_next.since >= v_since;
    IF NOT v_granted THEN
      UPDATE lockbeat_line SET called = v_now + grace WHERE key = p_key AND ticket = v_next.ticket;
      v_calls := v_calls || v_next.text;
      v_others := v_others + 1;
    END IF;
  END LOOP;
  IF v_granted THEN
    DELETE FROM lockbeat_line WHERE key = p_key AND ticket = v_ticket;
    v_token := coalesce(v_token, greatest(v_now, v_lock.token + 1));
    IF v_is_new AND p_limit = 1 AND v_others = 0 AND NOT EXISTS (SELECT FROM lockbeat_line WHERE key = p_key) THEN
      -- nobody else has it, or waits for it
      DELETE FROM lockbeat_wide WHERE key = p_key;
      UPDATE lockbeat_lock SET
        token = v_token, until = v_now + p_ttl, holder = p_holder, run = coalesce(p_run, ''), description = p_description,
        forget = v_now + p_ttl + p_memory
      WHERE key = p_key;
      RETURN json_build_array('granted', v_now, v_token);
    END IF;
    DELETE FROM lockbeat_wide WHERE key = p_key AND (until <= v_now OR token = v_token);
    INSERT INTO lockbeat_wide VALUES (p_key, v_token, v_now + p_ttl, p_holder, coalesce(p_run, ''), p_description);
    v_answer := json_build_array('granted', v_now, v_token, to_json(v_calls));
  ELSE
    SELECT * INTO v_first FROM (
      SELECT until, run, description FROM lockbeat_wide WHERE key = p_key AND until > v_now
      UNION ALL SELECT called, '', description FROM lockbeat_line WHERE key = p_key AND called > v_now
    ) live ORDER BY until LIMIT 1;
    IF p_place IS NOT NULL THEN
      v_answer := lockbeat_wait(p_key, p_place, v_since, p_description);
    END IF;
    IF v_answer->>0 = 'waiting' THEN
      SELECT v_calls || coalesce(array_agg(x), '{}') INTO v_calls FROM json_array_elements_text(v_answer->5) x;
      v_answer := json_build_array('waiting', v_answer->1, v_answer->2, v_answer->3, v_answer->4, v_first.until - v_now,
        encode(v_first.run, 'hex'), encode(v_first.description, 'hex'), to_json(v_calls));
    ELSE
      v_who := v_answer->>3;
      v_answer := json_build_array('held', v_first.until - v_now, false, encode(v_first.run, 'hex'),
        encode(v_first.description, 'hex'), CASE WHEN p_place IS NULL THEN '' ELSE v_answer->>1 END, to_json(v_calls));
      IF v_who IS NOT NULL AND p_place->>'who' IS NOT NULL THEN
        v_answer := array_to_json(ARRAY(SELECT json_array_elements(v_answer)) || to_json(v_who));
      END IF;
      IF cardinality(v_calls) = 0 THEN
        IF NOT v_was_wide THEN
          DELETE FROM lockbeat_wide WHERE key = p_key;
        END IF;
        RETURN v_answer;
      END IF;
    END IF;
  END IF;
  UPDATE lockbeat_lock SET holder = '\xff', run = convert_to(p_limit::text, 'UTF8') WHERE key = p_key;
  PERFORM lockbeat_summarize(p_key, greatest(CASE WHEN v_granted THEN v_token END, v_lock.token), p_memory);
  RETURN v_answer;
END $$;

-- Wait no more: what is kept for who gives up is given to the next. [whether it has waited, [what is to be told...]].
CREATE FUNCTION lockbeat_give_up(p_key bytea, p_ticket bytea, p_memory bigint) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_waited boolean;
  v_calls json := '[]';
BEGIN
  PERFORM FROM lockbeat_lock WHERE key = p_key FOR UPDATE;
  DELETE FROM lockbeat_line WHERE key = p_key AND ticket = p_ticket;
  v_waited := FOUND;
  IF EXISTS (SELECT FROM lockbeat_lock WHERE key = p_key AND holder = '\xff') THEN
    v_calls := lockbeat_call(p_key);
    PERFORM lockbeat_summarize(p_key, NULL, p_memory);
  END IF;
  RETURN json_build_array(v_waited, v_calls);
END $$;
