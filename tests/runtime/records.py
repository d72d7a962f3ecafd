"""Changes to the records of a run."""

import json

import jax


def on_more_devices(workdir):
    """Record that a run's state was sharded over more devices than there are: returns how many."""
    file = workdir / "config.json"
    fsdp = 2 * jax.device_count()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mesh": {"fsdp": fsdp}}))
    return fsdp
