"""Changes to the records of a run."""

import json

import jax


def change_config(workdir, fields):
    """Change fields of a run's config.json, which are named by their full path."""
    file = workdir / "config.json"
    config = json.loads(file.read_text())
    for name, value in fields.items():
        *sections, field = name.split(".")
        section = config
        for each in sections:
            section = section[each]
        section[field] = value
    file.write_text(json.dumps(config))


def on_more_devices(workdir):
    """Record that a run's state was sharded over more devices than there are: returns how many."""
    fsdp = 2 * jax.device_count()
    change_config(workdir, {"mesh.fsdp": fsdp})
    return fsdp
