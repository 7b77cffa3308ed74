"""Real beats and workers under faults, and a verdict by a checker that shares no code with them (docs/how-to/prove-it.md)."""
