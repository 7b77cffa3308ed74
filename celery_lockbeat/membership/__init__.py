"""The beats and workers of an app as members of it: what they say at their start, what they announce, and how well they are."""
