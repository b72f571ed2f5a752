"""What trains and how fast: strategies, label rules, the optimizer."""
