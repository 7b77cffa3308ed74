CREATE TABLE IF NOT EXISTS lockbeat_superseded (
        key BLOB, ticket BLOB, who TEXT, forget REAL, PRIMARY KEY (key, ticket)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS lockbeat_superseded_forget ON lockbeat_superseded (forget)
