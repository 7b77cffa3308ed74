"""The store of one host, without a server."""
