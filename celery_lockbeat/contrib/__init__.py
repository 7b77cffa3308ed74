"""Schedulers over other packages' schedulers; each imports its package, and nothing else imports them."""
