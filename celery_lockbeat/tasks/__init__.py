"""A task whose body runs under a lock: acquire, run, release."""
