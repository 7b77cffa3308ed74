"""What others are told: events, their log lines and signals."""
