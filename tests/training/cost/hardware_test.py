from absl.testing import absltest

from flowmatch_jax.training.cost import hardware


class HardwareTest(absltest.TestCase):
    def test_found_by_what_jax_calls_a_device(self):
        kinds = {
            "TPU v4": hardware.TPU_V4,
            "TPU v5 lite": hardware.TPU_V5E,
            "TPU v5": hardware.TPU_V5P,
            "TPU v6 lite": hardware.TPU_V6E,
            "NVIDIA A100-SXM4-80GB": hardware.A100_80,
            "NVIDIA H100 80GB HBM3": hardware.H100,
            "NVIDIA H200": hardware.H200,
        }
        for kind, expected in kinds.items():
            self.assertIs(hardware.find(kind), expected)

    def test_slower_forms_and_others_are_unknown(self):
        for kind in ("cpu", "NVIDIA H100 PCIe", "NVIDIA H200 NVL", "NVIDIA A100 80GB PCIe"):
            self.assertIsNone(hardware.find(kind))

    def test_float32_is_tf32_on_gpus_and_bfloat16_on_tpus(self):
        self.assertEqual(hardware.A100_80.peak_flops, {"bfloat16": 312e12, "float32": 156e12})
        self.assertEqual(hardware.TPU_V5E.peak_flops, {"bfloat16": 197e12, "float32": 197e12})


if __name__ == "__main__":
    absltest.main()
