"""Policies of django-celery-beat's rows: an app of Django's of its own, for the journal and the store need no django-celery-beat.

With it in ``INSTALLED_APPS`` and migrated, the admin of each ``PeriodicTask`` has its policy, and beats go by it.
"""
