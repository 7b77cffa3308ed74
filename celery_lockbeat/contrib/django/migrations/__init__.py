"""What Django applies to its databases."""
