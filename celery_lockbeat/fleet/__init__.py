"""The beats and workers of an app, as the others know them."""
