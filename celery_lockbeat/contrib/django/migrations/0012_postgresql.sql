-- Take several keys, or none: [[key, holder]...] in hex, in an order that is the same for all, so that nobody waits for a row of who waits for
-- theirs. As lockbeat_take for each; with p_name, what their message has reserved of the first is over then.
-- [[0, now, token...], [what is to be told to those who are called...]], or [[which is refused, the answer of lockbeat_take], [...]].
CREATE FUNCTION lockbeat_take_all(
  p_keys json, p_run bytea, p_whole bytea, p_ttl bigint, p_memory bigint, p_description bytea, p_waits_until bigint, p_limit bigint,
  p_place json, p_name bytea, p_task_id bytea, p_token text
) RETURNS json LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_answer json;
  v_freed json;
  v_now json;
  v_tokens json[] := '{}';
  v_calls text[] := '{}';
BEGIN
  FOR i IN 0 .. json_array_length(p_keys) - 1 LOOP
    v_answer := lockbeat_take(
      decode(p_keys->i->>0, 'hex'), decode(p_keys->i->>1, 'hex'), p_run, p_whole, p_ttl, p_memory, p_description, p_waits_until,
      p_limit, p_place
    );
    IF v_answer->>0 <> 'granted' THEN
      FOR j IN REVERSE i - 1 .. 0 LOOP
        v_freed := lockbeat_drop(decode(p_keys->j->>0, 'hex'), decode(p_keys->j->>1, 'hex'), p_memory);
        IF json_typeof(v_freed) = 'array' THEN
          SELECT v_calls || coalesce(array_agg(x), '{}') INTO v_calls FROM json_array_elements_text(v_freed->1) x;
        END IF;
      END LOOP;
      RETURN json_build_array(json_build_array(i + 1, v_answer), to_json(v_calls));
    END IF;
    v_now := coalesce(v_now, v_answer->1);
    v_tokens := v_tokens || (v_answer->2);
    IF v_answer->3 IS NOT NULL THEN
      SELECT v_calls || coalesce(array_agg(x), '{}') INTO v_calls FROM json_array_elements_text(v_answer->3) x;
    END IF;
  END LOOP;
  IF p_name IS NOT NULL THEN
    DELETE FROM lockbeat_reserved
    WHERE key = decode(p_keys->0->>0, 'hex') AND name = p_name AND task_id = p_task_id AND token = p_token;
  END IF;
  RETURN json_build_array(json_build_array(0, v_now, to_json(v_tokens)), to_json(v_calls));
END $$;

-- End several leases, [[key, token, holder]...] in hex, in that same order: the answer of lockbeat_end for each.
CREATE FUNCTION lockbeat_end_all(p_leases json, p_run bytea, p_hold bigint, p_remember bigint, p_memory bigint) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_answers json[] := '{}';
BEGIN
  FOR i IN 0 .. json_array_length(p_leases) - 1 LOOP
    v_answers := v_answers || lockbeat_end(
      decode(p_leases->i->>0, 'hex'), (p_leases->i->>1)::bigint, decode(p_leases->i->>2, 'hex'), p_run, p_hold, p_remember, p_memory
    );
  END LOOP;
  RETURN to_json(v_answers);
END $$;

-- Extend several leases, as lockbeat_prolong does, which takes the rows of those with more than one holder last: here all are taken before.
CREATE FUNCTION lockbeat_prolong_all(p_leases json, p_memory bigint) RETURNS json LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
BEGIN
  FOR i IN 0 .. json_array_length(p_leases) - 1 LOOP
    PERFORM FROM lockbeat_lock WHERE key = decode(p_leases->i->>0, 'hex') FOR UPDATE;
  END LOOP;
  RETURN lockbeat_prolong(p_leases, p_memory);
END $$;
