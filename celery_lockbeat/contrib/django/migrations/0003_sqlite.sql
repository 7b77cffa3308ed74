CREATE TABLE IF NOT EXISTS lockbeat_journal (
        position INTEGER PRIMARY KEY, app BLOB, written REAL, text TEXT);
CREATE INDEX IF NOT EXISTS lockbeat_journal_of ON lockbeat_journal (app, position);
CREATE TABLE IF NOT EXISTS lockbeat_batch (app BLOB, name TEXT, until REAL, PRIMARY KEY (app, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lockbeat_batch_until ON lockbeat_batch (app, until);
CREATE TABLE IF NOT EXISTS lockbeat_tail (app BLOB PRIMARY KEY, position INTEGER, added INTEGER) WITHOUT ROWID
