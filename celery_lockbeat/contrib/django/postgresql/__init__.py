"""The store in PostgreSQL, where Django has it: a function of the database, in one statement, per operation."""
