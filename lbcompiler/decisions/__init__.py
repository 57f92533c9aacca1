"""What becomes of every linear: measured candidates of each group, and a choice under a budget."""
