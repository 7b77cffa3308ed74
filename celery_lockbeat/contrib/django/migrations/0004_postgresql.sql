-- The format of all tables: its number, and the release that has begun it. Whose migration begins a new one replaces this.
CREATE FUNCTION lockbeat_format() RETURNS json LANGUAGE sql IMMUTABLE AS $$ SELECT '[1, "0.1.0"]'::json $$;
