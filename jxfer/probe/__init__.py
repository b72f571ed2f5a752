"""What is measured on frozen features."""
