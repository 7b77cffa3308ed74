CREATE TABLE IF NOT EXISTS lockbeat_wide (
        key BLOB, token INTEGER, until REAL, holder BLOB, run BLOB, description TEXT, process INTEGER,
        PRIMARY KEY (key, token)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lockbeat_wide_until ON lockbeat_wide (until)
