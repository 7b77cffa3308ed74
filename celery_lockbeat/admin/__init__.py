"""Django's admin: the journal, the locks and the entries of the app, and what may be done there by whoever has the permission to.

Promises: whoever may only view a kind does nothing with it, and what is done is in the journal with the user's name. It is a room of
its own, beside the commands and the page; ``contrib/django/admin.py`` is where Django looks for it.
"""
