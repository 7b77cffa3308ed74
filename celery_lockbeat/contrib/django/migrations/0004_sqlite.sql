CREATE TABLE IF NOT EXISTS lockbeat_format (number INTEGER, begun_by TEXT)
