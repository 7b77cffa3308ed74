"""What says when: cron, interval, timeout."""
