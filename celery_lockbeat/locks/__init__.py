"""One hold of one key, in this process: renewal, loss, and what becomes of it when its process dies."""
