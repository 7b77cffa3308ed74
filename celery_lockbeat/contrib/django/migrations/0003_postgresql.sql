-- The journal of each app, in the order of its positions. written: seconds since the epoch, as in SQLite, for Django's admin
-- reads both by one model.
CREATE TABLE lockbeat_journal (
  position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, app bytea NOT NULL, written double precision NOT NULL,
  text text NOT NULL
);
CREATE INDEX lockbeat_journal_of ON lockbeat_journal (app, position);
-- The batches that were written lately. Times as in 0001.
CREATE TABLE lockbeat_batch (app bytea, name text, until bigint NOT NULL, PRIMARY KEY (app, name));
CREATE INDEX lockbeat_batch_until ON lockbeat_batch (app, until);
-- undropped: how many records were written since the oldest were last dropped. The row is locked by each who writes.
CREATE TABLE lockbeat_tail (app bytea PRIMARY KEY, undropped bigint NOT NULL) WITH (fillfactor = 50);

-- Write a batch of records, [text...], and now and then drop the oldest; false: it has been written before.
-- Those who write for one app go one after the other, from before a position is drawn until it is committed. Else: A draws 1,
-- B draws 2 and commits, a reader sees 2 and goes on after it, A commits: nobody who reads on ever sees 1. A row's lock is
-- freed once what was written under it can be seen; that of a beat's row would make ticks wait.
CREATE FUNCTION lockbeat_append(
  p_app bytea, p_batch text, p_texts json, p_keep bigint, p_remember bigint, p_forget text, p_memory double precision
) RETURNS json LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  v_now bigint;
  v_undropped bigint;
BEGIN
  INSERT INTO lockbeat_tail AS t VALUES (p_app, json_array_length(p_texts))
  ON CONFLICT (app) DO UPDATE SET undropped = t.undropped + json_array_length(p_texts)
  RETURNING undropped INTO v_undropped;
  v_now := lockbeat_now();
  DELETE FROM lockbeat_batch WHERE app = p_app AND (name = p_forget OR until <= v_now);
  INSERT INTO lockbeat_batch VALUES (p_app, p_batch, v_now + p_remember) ON CONFLICT DO NOTHING;
  IF NOT FOUND THEN
    RETURN to_json(false);
  END IF;
  INSERT INTO lockbeat_journal (app, written, text)
  SELECT p_app, v_now / 1e6, x FROM json_array_elements_text(p_texts) WITH ORDINALITY t(x, n) ORDER BY n;
  -- to count those that are kept takes its time
  IF v_undropped >= 256 THEN
    UPDATE lockbeat_tail SET undropped = 0 WHERE app = p_app;
    DELETE FROM lockbeat_journal WHERE app = p_app AND position <= (
      SELECT position FROM lockbeat_journal
      WHERE (app, position) > (p_app, 0) AND (app, position) < (p_app, 9223372036854775807)
      ORDER BY app DESC, position DESC LIMIT 1 OFFSET p_keep
    );
    DELETE FROM lockbeat_journal WHERE app = p_app AND written < v_now / 1e6 - p_memory;
  END IF;
  RETURN to_json(true);
END $$;

-- [[position, written, text]...] of an app, from the oldest on or from the newest back; NULL: without that bound.
CREATE FUNCTION lockbeat_records(
  p_app bytea, p_after bigint, p_before bigint, p_since double precision, p_newest_first boolean, p_limit bigint
) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
  v_records json;
BEGIN
  -- Two orders, two statements, and bounds that are always there, as pairs: so each is a walk along the index of this app. By
  -- the primary key it would pass by the records of all others.
  p_after := coalesce(p_after, 0);
  p_before := coalesce(p_before, 9223372036854775807);
  p_since := coalesce(p_since, '-infinity');
  IF p_newest_first THEN
    SELECT json_agg(json_build_array(position, written, text) ORDER BY position DESC) INTO v_records FROM (
      SELECT * FROM lockbeat_journal
      WHERE (app, position) > (p_app, p_after) AND (app, position) < (p_app, p_before) AND written >= p_since
      ORDER BY app DESC, position DESC LIMIT p_limit
    ) found;
  ELSE
    SELECT json_agg(json_build_array(position, written, text) ORDER BY position) INTO v_records FROM (
      SELECT * FROM lockbeat_journal
      WHERE (app, position) > (p_app, p_after) AND (app, position) < (p_app, p_before) AND written >= p_since
      ORDER BY app, position LIMIT p_limit
    ) found;
  END IF;
  RETURN coalesce(v_records, '[]');
END $$;
