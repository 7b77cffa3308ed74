CREATE TABLE IF NOT EXISTS lockbeat_line (
        key BLOB, ticket BLOB, since INTEGER, until REAL, began REAL, grace REAL, copy INTEGER, renewed REAL, kind TEXT,
        description TEXT, text TEXT, called REAL, PRIMARY KEY (key, ticket)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lockbeat_line_since ON lockbeat_line (key, since);
CREATE INDEX IF NOT EXISTS lockbeat_line_until ON lockbeat_line (until)
