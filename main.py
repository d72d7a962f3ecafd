"""The command line, from a checkout: see flowmatch_jax/command.py, or --help."""

from flowmatch_jax.command import start

if __name__ == "__main__":
    start()
