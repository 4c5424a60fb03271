"""Names that scripts written for DeepSpeed import from `deepspeed.runtime`."""
