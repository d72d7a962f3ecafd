"""pytest does not parse absl's flags; temporary folders of absltest need them parsed."""

from absl import flags

flags.FLAGS.mark_as_parsed()
