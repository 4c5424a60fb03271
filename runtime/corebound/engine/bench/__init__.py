"""What `corebound bench generate` runs in other processes: our ranks, transformers, and the models of given shapes."""
