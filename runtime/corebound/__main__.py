"""`python -m corebound` is the `corebound` command."""

from corebound.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
