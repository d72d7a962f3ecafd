from pathlib import Path

from absl.testing import absltest

from flowmatch_jax.evaluation.summary import summarise

PATH = Path("runs/a/evaluation/30.json")


class SummaryTest(absltest.TestCase):
    def lines(self, **record):
        return summarise({"step": 30, **record}, PATH).splitlines()

    def test_columns_of_weights(self):
        def results(bits, distance):
            return {
                "bits_per_dim_k20": bits - 0.01,
                "bits_per_dim_k20_standard_error": 0.0497,
                "bits_per_dim_k1": bits,
                "bits_per_dim_k1_standard_error": 0.0512,
                "images": 10000,
                "likelihood_nfe": 26.0,
                "converged": True,
                "sample_nfe": 20.5,
                "samples_converged": True,
                "fd_pixels": distance,
                "samples_not_finite": 0,
            }

        lines = self.lines(results={"ema": results(3.65, 9.5721), "raw": results(3.7, None)})
        self.assertEqual(lines[0], "Evaluation at step 30:")
        self.assertLen({len(line) for line in lines[1:-1]}, 1)
        self.assertRegex(lines[1], "^ +ema weights +raw weights$")
        rows = [[cell.strip() for cell in line.split("  ") if cell] for line in lines[2:-1]]
        self.assertEqual(
            rows,
            [
                ["bits per dimension (K = 1)", "3.650 +- 0.051", "3.700 +- 0.051"],
                ["bits per dimension (K = 20)", "3.640 +- 0.050", "3.690 +- 0.050"],
                ["Fréchet distance (pixels)", "9.572", "-"],
                ["test items scored", "10,000", "10,000"],
                ["function evaluations of a likelihood", "26", "26"],
                ["function evaluations of a sample", "20.5", "20.5"],
            ],
        )
        self.assertEqual(lines[-1], f"It is kept in {PATH}.")

    def test_names_of_all_scores(self):
        names = {
            "log_likelihood": "log-likelihood (nats)",
            "fid": "FID",
            "inception_score": "Inception score",
            "kid": "KID",
            "precision": "precision",
            "recall": "recall",
            "fd_efficientnet_lite0": "Fréchet distance (efficientnet_lite0)",
            "is_efficientnet_lite0": "Inception score (efficientnet_lite0)",
            "kd_pixels": "kernel distance (pixels)",
            "precision_pixels": "precision (pixels)",
            "recall_pixels": "recall (pixels)",
            "psnr": "PSNR (dB)",
            "ssim": "SSIM",
            "consistency_rmse": "consistency (RMSE in grey levels)",
        }
        shown = "\n".join(self.lines(results={"ema": dict.fromkeys(names, 1.0)}))
        for title in names.values():
            self.assertRegex(shown, rf"(?m)^{title.replace('(', '[(]').replace(')', '[)]')} +1$")

    def test_baselines_and_warnings(self):
        model = {"psnr": 20.123, "psnr_standard_error": 0.5, "warnings": ["too few"]}
        lines = self.lines(results={"ema": model}, baselines={"Bicubic": {"psnr": 19.0}})
        self.assertEqual(lines[1].split(), ["ema", "weights", "Bicubic"])
        self.assertEqual(lines[2].split(), ["PSNR", "(dB)", "20.12", "+-", "0.50", "19"])
        self.assertEqual(lines[3], "ema weights: too few.")

    def test_samples_left_out_are_told_where_there_are_some(self):
        lines = self.lines(results={"ema": {"sample_nfe": 2.0, "samples_not_finite": 3}})
        self.assertRegex(lines[-2], r"^samples left out as not finite +3$")

    def test_errors_that_are_none(self):
        for error in (float("nan"), 0.0, None):
            result = {"psnr": 20.0, "psnr_standard_error": error}
            self.assertEndsWith(self.lines(results={"ema": result})[2], " 20")


if __name__ == "__main__":
    absltest.main()
