"""One search over all remedies together: the best configuration that fits, and why it is the best."""
