"""The container images: what is inside, what is not, and that they run as a hardened pod runs them."""
