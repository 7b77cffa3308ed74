-- Which runs of an entry have failed in a row. Names, and kept, as those of flags in 0007.
CREATE TABLE lockbeat_streak (
  app bytea, name bytea, runs text[] NOT NULL, kept bigint NOT NULL, PRIMARY KEY (app, name)
);

-- Count a run that has failed, and pause its entry with the p_limit of them in a row; whether what is told is of that pause.
CREATE FUNCTION lockbeat_failed(p_app bytea, p_name bytea, p_exact bytea, p_run text, p_limit bigint, p_told text)
RETURNS json LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint := lockbeat_alone(p_app);
  v_flag lockbeat_flag;
  v_runs text[];
BEGIN
  SELECT * INTO v_flag FROM lockbeat_flag WHERE app = p_app AND name = p_name;
  IF v_flag.paused AND coalesce(v_flag.until > v_now, true) THEN
    RETURN to_json(v_flag.told = p_told);
  END IF;
  SELECT runs INTO v_runs FROM lockbeat_streak WHERE app = p_app AND name = p_name;
  v_runs := coalesce(v_runs, '{}');
  IF p_run <> ALL (v_runs) THEN
    v_runs := v_runs || p_run;
  END IF;
  IF cardinality(v_runs) < p_limit THEN
    INSERT INTO lockbeat_streak VALUES (p_app, p_name, v_runs, v_now)
    ON CONFLICT (app, name) DO UPDATE SET runs = EXCLUDED.runs;
    RETURN to_json(false);
  END IF;
  DELETE FROM lockbeat_streak WHERE app = p_app AND name = p_name;
  INSERT INTO lockbeat_flag (app, name, exact, paused, told, kept) VALUES (p_app, p_name, p_exact, true, p_told, v_now)
  ON CONFLICT (app, name) DO UPDATE SET paused = true, until = NULL, told = EXCLUDED.told;
  RETURN to_json(true);
END $$;

-- From here on none has failed in a row.
CREATE FUNCTION lockbeat_succeeded(p_app bytea, p_name bytea) RETURNS json LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
BEGIN
  DELETE FROM lockbeat_streak WHERE app = p_app AND name = p_name;
  RETURN to_json(true);
END $$;

-- As in 0007; and none has failed in a row from here on.
CREATE OR REPLACE FUNCTION lockbeat_resume(p_app bytea, p_names json, p_lapsed boolean, p_request text, p_text text)
RETURNS json LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint := lockbeat_alone(p_app);
  v_before json;
BEGIN
  DELETE FROM lockbeat_streak WHERE app = p_app AND name IN (SELECT decode(x->>0, 'hex') FROM json_array_elements(p_names) x);
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

-- As in 0007, and what is counted.
CREATE OR REPLACE FUNCTION lockbeat_keep(p_app bytea, p_names json, p_memory bigint) RETURNS json
LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint := lockbeat_alone(p_app);
  v_names bytea[] := ARRAY(SELECT decode(x, 'hex') FROM json_array_elements_text(p_names) x);
BEGIN
  UPDATE lockbeat_flag SET kept = v_now WHERE app = p_app AND name = ANY (v_names);
  UPDATE lockbeat_streak SET kept = v_now WHERE app = p_app AND name = ANY (v_names);
  DELETE FROM lockbeat_flag WHERE app = p_app AND (kept <= v_now - p_memory OR NOT (paused OR skip > 0));
  DELETE FROM lockbeat_streak WHERE app = p_app AND kept <= v_now - p_memory;
  RETURN to_json(true);
END $$;
