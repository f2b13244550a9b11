"""What the README's numbers come from; `make bench` runs them side by side and writes RESULTS.md."""
