"""What an advisor measures before it speaks: similarity of data, transferability of features."""
