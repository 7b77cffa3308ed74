CREATE TABLE IF NOT EXISTS lockbeat_host (boot TEXT);
CREATE TABLE IF NOT EXISTS lockbeat_lock (
        key BLOB PRIMARY KEY, token INTEGER, until REAL, holder BLOB, run BLOB, description TEXT, process INTEGER,
        forget REAL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lockbeat_lock_forget ON lockbeat_lock (forget);
CREATE TABLE IF NOT EXISTS lockbeat_done (
        key BLOB, run BLOB, token INTEGER, lasts REAL, forget REAL, PRIMARY KEY (key, run)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lockbeat_done_forget ON lockbeat_done (forget);
CREATE TABLE IF NOT EXISTS lockbeat_entry (
        app BLOB, name BLOB, count INTEGER, last_run_at BLOB, unlisted REAL, PRIMARY KEY (app, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lockbeat_entry_unlisted ON lockbeat_entry (app, unlisted) WHERE unlisted IS NOT NULL;
CREATE TABLE IF NOT EXISTS lockbeat_claim (
        app BLOB, task_id TEXT, entry BLOB, run INTEGER, replica TEXT, until REAL, details TEXT,
        PRIMARY KEY (app, task_id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lockbeat_claim_until ON lockbeat_claim (app, until);
CREATE INDEX IF NOT EXISTS lockbeat_claim_entry ON lockbeat_claim (app, entry);
CREATE TABLE IF NOT EXISTS lockbeat_replica (
        app BLOB, name TEXT, seen REAL, complete INTEGER, PRIMARY KEY (app, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lockbeat_listed (
        app BLOB, replica TEXT, name BLOB, PRIMARY KEY (app, replica, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lockbeat_listed_name ON lockbeat_listed (app, name);
CREATE TABLE IF NOT EXISTS lockbeat_cold_start (app BLOB PRIMARY KEY, at REAL) WITHOUT ROWID
