"""The beat without a leader: any number of replicas share the ticks of one schedule."""
