"""What `corebound bench targets` measures: every promised figure that needs no other engine, beside its limit."""
