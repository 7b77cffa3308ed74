CREATE TABLE IF NOT EXISTS lockbeat_flag (
        app BLOB, name BLOB, paused INTEGER, until REAL, skip INTEGER, told TEXT, skip_told TEXT, passed INTEGER,
        first TEXT, last TEXT, passed_by TEXT, why TEXT, kept REAL, PRIMARY KEY (app, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lockbeat_flag_until ON lockbeat_flag (app, until) WHERE until IS NOT NULL;
CREATE TABLE IF NOT EXISTS lockbeat_request (
        app BLOB, name TEXT, flag BLOB, told TEXT, passed INTEGER, first TEXT, last TEXT, cancelled INTEGER, asked REAL,
        PRIMARY KEY (app, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lockbeat_request_asked ON lockbeat_request (app, asked)
