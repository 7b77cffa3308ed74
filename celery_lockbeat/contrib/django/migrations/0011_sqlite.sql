CREATE TABLE IF NOT EXISTS lockbeat_streak (
        app BLOB, name BLOB, runs TEXT, kept REAL, PRIMARY KEY (app, name)) WITHOUT ROWID
