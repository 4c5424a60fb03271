"""What `corebound bench generate` and `quality` measure: ranks, transformers, random models, quantized weights."""
