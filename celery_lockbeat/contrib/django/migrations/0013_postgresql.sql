-- Who waits to replace a holder: a kind of its own in lockbeat_line, of which the latest waits. The holder is told when it is extended.

-- As in 0009.
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
  ELSIF p_place->>'kind' IN ('latest', 'replace') THEN
    IF EXISTS (
      SELECT FROM lockbeat_line
      WHERE key = p_key AND ticket <> v_ticket AND called IS NULL AND until > v_now AND kind = p_place->>'kind' AND since > p_since
    ) THEN
      v_why := 'superseded';
      INSERT INTO lockbeat_done VALUES (p_key, decode(p_place->>'mark', 'hex'), 1, v_now + 3600000000)
      ON CONFLICT (key, run) DO UPDATE SET token = EXCLUDED.token, forget = EXCLUDED.forget;
    ELSE
      WITH older AS (
        DELETE FROM lockbeat_line
        WHERE key = p_key AND ticket <> v_ticket AND called IS NULL AND until > v_now AND kind = p_place->>'kind'
        RETURNING mark, text
      ), marked AS (
        INSERT INTO lockbeat_done SELECT p_key, mark, 1, v_now + 3600000000 FROM older
        ON CONFLICT (key, run) DO UPDATE SET token = EXCLUDED.token, forget = EXCLUDED.forget
      )
      SELECT coalesce(array_agg(text), '{}') INTO v_calls FROM older;
    END IF;
  ELSIF NOT v_is_known AND v_others >= (p_place->>'room')::bigint THEN
    v_why := 'full';
  END IF;
  IF v_why <> '' THEN
    DELETE FROM lockbeat_line WHERE key = p_key AND ticket = v_ticket;
    RETURN json_build_array('', v_why, to_json(v_calls));
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

-- As in 0005, but that where one waits to replace the one that has a lock longest, the answer to that one is what the other says of itself.
CREATE OR REPLACE FUNCTION lockbeat_prolong(p_leases json, p_memory bigint) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_answers json := lockbeat_extend(p_leases, p_memory);
  v_told json[] := '{}';
  v_lease json;
  v_answer json;
  v_key bytea;
  v_by bytea;
BEGIN
  FOR i IN 0 .. json_array_length(p_leases) - 1 LOOP
    v_answer := v_answers->i;
    IF NOT (v_answers->>i)::boolean THEN
      v_lease := p_leases->i;
      v_key := decode(v_lease->>0, 'hex');
      PERFORM FROM lockbeat_lock WHERE key = v_key AND holder = '\xff' FOR UPDATE;
      IF FOUND THEN
        UPDATE lockbeat_wide SET until = lockbeat_now() + (v_lease->>3)::bigint
        WHERE key = v_key AND token = (v_lease->>1)::bigint AND holder = decode(v_lease->>2, 'hex') AND until > lockbeat_now();
        IF FOUND THEN
          PERFORM lockbeat_summarize(v_key, NULL, p_memory);
          SELECT description INTO v_by FROM lockbeat_line
          WHERE key = v_key AND kind = 'replace' AND called IS NULL AND until > lockbeat_now() AND NOT EXISTS (
            SELECT FROM lockbeat_wide
            WHERE key = v_key AND until > lockbeat_now() AND holder <> '' AND token < (v_lease->>1)::bigint
          );
          v_answer := CASE WHEN FOUND THEN to_json(encode(v_by, 'hex')) ELSE 'true' END;
        END IF;
      END IF;
    END IF;
    v_told := v_told || v_answer;
  END LOOP;
  RETURN to_json(v_told);
END $$;

-- Whether one who waited may be called: it waits no more.
CREATE FUNCTION lockbeat_is_called(p_key bytea, p_ticket bytea) RETURNS json LANGUAGE sql AS $$
  SELECT to_json(NOT EXISTS (
    SELECT FROM lockbeat_line WHERE key = p_key AND ticket = p_ticket AND called IS NULL AND until > lockbeat_now()
  ))
$$;
