CREATE TABLE IF NOT EXISTS lockbeat_announced (
        app BLOB, kind TEXT, name BLOB, told TEXT, first REAL, last REAL, until REAL,
        PRIMARY KEY (app, kind, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lockbeat_announced_until ON lockbeat_announced (app, kind, until)
