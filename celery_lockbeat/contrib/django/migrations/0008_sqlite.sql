CREATE TABLE IF NOT EXISTS lockbeat_reserved (
        key BLOB, name BLOB, task_id BLOB, token TEXT, lasts REAL, until REAL, PRIMARY KEY (key, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lockbeat_reserved_until ON lockbeat_reserved (until)
