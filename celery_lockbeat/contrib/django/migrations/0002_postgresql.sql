-- What beats and workers of an app announce to each other; exact: the name, however long. Times as in 0001.
CREATE TABLE lockbeat_announced (
  app bytea, kind text, name bytea, exact bytea NOT NULL, told text NOT NULL, first bigint NOT NULL, last bigint NOT NULL,
  until bigint NOT NULL, PRIMARY KEY (app, kind, name)
) WITH (fillfactor = 50);
CREATE INDEX lockbeat_announced_until ON lockbeat_announced (app, kind, until);

-- Let others know, [[name, exact name, text]...], and forget what was to be known until now. In the order of the names, so
-- that two who announce the same do not wait for each other.
CREATE FUNCTION lockbeat_announce(p_app bytea, p_kind text, p_told json, p_ttl bigint) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint := lockbeat_now();
BEGIN
  DELETE FROM lockbeat_announced WHERE app = p_app AND kind = p_kind AND name IN (
    SELECT name FROM lockbeat_announced WHERE app = p_app AND kind = p_kind AND until <= v_now
    ORDER BY name LIMIT 1000 FOR UPDATE SKIP LOCKED
  );
  INSERT INTO lockbeat_announced AS a
  SELECT p_app, p_kind, decode(x->>0, 'hex'), decode(x->>1, 'hex'), x->>2, v_now, v_now, v_now + p_ttl
  FROM json_array_elements(p_told) x ORDER BY x->>0
  ON CONFLICT (app, kind, name) DO UPDATE SET
    told = EXCLUDED.told, last = v_now, until = v_now + p_ttl, first = CASE WHEN a.until > v_now THEN a.first ELSE v_now END;
  RETURN to_json(true);
END $$;

-- [[exact name, text, first, time since it was announced]...] of these names; NULL: of all.
CREATE FUNCTION lockbeat_announced_of(p_app bytea, p_kind text, p_names json, p_limit bigint) RETURNS json
LANGUAGE sql AS $$
  SELECT coalesce(json_agg(json_build_array(encode(exact, 'hex'), told, first, lockbeat_now() - last)), '[]')
  FROM (
    SELECT * FROM lockbeat_announced
    WHERE app = p_app AND kind = p_kind AND until > lockbeat_now() AND (
      p_names IS NULL OR name IN (SELECT decode(x, 'hex') FROM json_array_elements_text(p_names) x)
    )
    LIMIT p_limit
  ) known
$$;
