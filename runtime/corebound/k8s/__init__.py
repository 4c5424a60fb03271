"""Kubernetes: render, validate, apply and follow an MPIJob. Never imports torch."""
