from pathlib import Path

from absl.testing import absltest, parameterized

from flowmatch_jax.report import runs
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.files import Unreadable
from tests.evaluation.cases import CONFIG, RECORD, changed, scores, write_run


class RunsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)

    def run_of(self, name, config=CONFIG, records=None):
        return runs.load_run(write_run(self.folder / name, config, records))

    def record(self, results, **fields):
        return changed(RECORD, **fields) | {"results": results}

    @parameterized.parameters(
        ("flow_matching", "ot", "FM w/ OT"),
        ("flow_matching", "vp", "FM w/ Diffusion"),
        ("ddpm", "vp", "DDPM"),
        ("maximum_likelihood", "ot", "CNF, maximum likelihood"),
        ("regression", "ot", "Regression"),
        ("sr3", "vp", "SR3"),
        ("ddpm", "ve", "ddpm, ve"),
    )
    def test_names_of_the_paper(self, objective, path, name):
        config = changed(CONFIG, objective__name=objective, path__name=path)
        self.assertEqual(self.run_of("a", config).method, name)

    @parameterized.parameters(
        ("paired", "FM w/ OT, reflow"), ("minibatch_ot", "FM w/ OT, minibatch OT")
    )
    def test_a_coupling_is_in_the_name(self, coupling, name):
        config = changed(CONFIG, objective__coupling=coupling)
        self.assertEqual(self.run_of("a", config).method, name)

    def test_a_name_of_its_own(self):
        config = CONFIG | {"method": "FM w/ OT, tuned"}
        self.assertEqual(self.run_of("a", config).method, "FM w/ OT, tuned")
        self.assertEqual(self.run_of("b", CONFIG | {"method": None}).method, "FM w/ OT")

    def test_time_a_step_leaves_out_the_first_interval(self):
        self.assertEqual(self.run_of("a").milliseconds_a_step(), 1000 * 8 / 300)

    def test_not_a_run(self):
        with self.assertRaisesRegex(UserError, "--runs: got .*no config.json"):
            runs.load_run(self.folder)
        with self.assertRaisesRegex(UserError, "--runs: got .*no evaluation; .*--mode=evaluate"):
            self.run_of("a", records=[])

    @parameterized.parameters("config.json", "evaluation/100.json")
    def test_records_that_are_cut(self, name):
        workdir = write_run(self.folder / "a")
        for data in (b"", b'{"a": ', b"\xff", b"[]", b'{"evaluations": 3}'):
            if name == "config.json" and data[:1] in b"[{" and data.endswith((b"]", b"}")):
                continue
            (workdir / name).write_bytes(data)
            with self.assertRaisesRegex(Unreadable, f"{name}: "):
                runs.load_run(workdir)

    def test_stray_files_are_not_looked_at(self):
        workdir = write_run(self.folder / "a")
        for name in ("._100.json", ".DS_Store", "notes.json", "100.json.unreadable"):
            (workdir / "evaluation" / name).write_bytes(b"\0")
        self.assertEqual(runs.load_run(workdir).step, 100)

    def test_the_newest_step_counts(self):
        workdir = write_run(self.folder / "a", records=[self.record({}, step=50)])
        (workdir / "evaluation" / "100.json").write_text('{"evaluations": []}')
        self.assertEqual(runs.load_run(workdir).step, 100)

    @parameterized.parameters(
        ("data__name", "emoji", "a report takes one dataset"),
        ("data__split", "train", "data.split = 'train'"),
        ("solver__rtol", 1e-5, "solver.rtol = 1e-05, .*0.001"),
        ("likelihood__images", 10, "likelihood.images = 10"),
        ("likelihood__probes", 2, "likelihood.probes = 2"),
        ("evaluation_seed", 2, "evaluation.seed = 2"),
        ("dtype", "bfloat16", "evaluation.dtype"),
        ("guidance", {"scale": 2.0}, "guidance.scale = 2.0"),
    )
    def test_unlike_evaluations_are_refused_with_the_reason(self, field, value, said):
        other = self.run_of("b", records=[self.record({}, **{field: value})])
        with self.assertRaisesRegex(UserError, f"b'; it (is|was) .*{said}"):
            runs.alike([self.run_of("a"), other])

    def test_a_field_younger_than_one_of_two_evaluations(self):
        record = self.record({})
        before = record | {"solver": {k: v for k, v in record["solver"].items() if k != "grid"}}
        old, new = self.run_of("old", records=[before]), self.run_of("new", records=[record])
        for order in ([old, new], [new, old]):
            with self.assertRaisesRegex(UserError, "solver.grid = .*; evaluate both alike"):
                runs.alike(order)

    def test_each_run_has_its_own_fitted_solver(self):
        fitted = {"method": "fitted", "steps": 8}
        records = [self.record({}, solver=fitted | {"sha256": name}) for name in "ab"]
        records.append(self.record({}, solver=fitted | {"file": "by an earlier version"}))
        found = [self.run_of(str(n), records=[record]) for n, record in enumerate(records)]
        self.assertEqual(runs.alike(found)["solver.steps"], 8)

    def test_conditions_that_all_share_are_found_among_others(self):
        quick = self.record({"ema": scores(9.0)}, solver__rtol=1e-1)
        fine = self.record({"ema": scores(1.0)})
        a, b = self.run_of("a", records=[fine, quick]), self.run_of("b", records=[fine])
        for order in ([a, b], [b, a]):
            wanted = runs.alike(order)
            self.assertEqual(wanted["solver.rtol"], 1e-3)
        self.assertEqual(runs.results(a, wanted)["ema"]["bits_per_dim_k1"], 1.0)

    def test_evaluations_under_the_same_conditions_add_up(self):
        few = self.record({"ema": scores(2.0, k=1), "raw": scores(3.0, k=1)})
        many = self.record({"ema": scores(1.5, k=20)}, likelihood__dequantisations=[20])
        run = self.run_of("a", records=[few, many])
        found = runs.results(run, runs.alike([run]))
        self.assertEqual(runs.ks(found["ema"]), [1, 20])
        self.assertEqual(runs.ks(found["raw"]), [1])

    def test_a_solve_that_gave_up_is_no_result(self):
        values = scores(4.867) | {"converged": False, "samples_converged": True, "sample_nfe": 50.0}
        run = self.run_of("a", records=[self.record({"ema": values})])
        found = runs.results(run, runs.alike([run]))["ema"]
        self.assertEmpty(runs.ks(found))
        self.assertEqual(found["sample_nfe"], 50.0)
        values |= {"converged": True, "samples_converged": False}
        found = runs.trusted(self.record({"ema": values}), "ema")
        self.assertNotIn("sample_nfe", found)
        self.assertEqual(found["bits_per_dim_k1"], 4.867)
        self.assertEmpty(runs.trusted(self.record({"ema": {"psnr": float("nan")}}), "ema"))

    def test_a_likelihood_by_fixed_steps_is_no_result(self):
        """Records of earlier versions have such ones, which cannot be told from good ones."""
        values = {"bits_per_dim_k1": -26.6, "likelihood_nfe": 2.0, "fd_pixels": 2.0}
        few = {"solver__method": "euler", "solver__steps": 2}
        old = self.record({"ema": values}, **few)
        new = self.record({"ema": values}, **few, likelihood__method="dopri5")
        self.assertEqual(runs.trusted(old, "ema"), {"fd_pixels": 2.0})
        self.assertEqual(runs.trusted(new, "ema"), values)
        both = [self.run_of("old", records=[old]), self.run_of("new", records=[new])]
        with self.assertRaisesRegex(UserError, "likelihood.method = 'dopri5'.*'euler'"):
            runs.alike(both)

    def test_distances_measured_differently_are_refused(self):
        other = self.record({"ema": scores()}, frechet__generated=50)
        both = [self.run_of("a"), self.run_of("b", records=[other])]
        wanted = runs.alike(both)
        with self.assertRaisesRegex(UserError, "frechet.generated = 50, .* 500"):
            runs.frechet_settings(both, wanted)
        none = self.run_of("c", records=[self.record({"ema": {}}, frechet=None)])
        settings = runs.frechet_settings([both[0], none], wanted)
        self.assertEqual(settings, RECORD["frechet"])
        self.assertIsNone(runs.frechet_settings([none], wanted))

    def test_seeds_share_a_row(self):
        names = "abcdef"
        configs = [
            CONFIG,
            changed(CONFIG, seed=1),
            changed(CONFIG, seed=2, evaluate__seed=7),  # no part of training
            changed(CONFIG, path__name="vp"),
            changed(CONFIG, seed=3, train__steps=7),
            CONFIG,  # the same seed again is no further one
        ]
        loaded = [self.run_of(n, c) for n, c in zip(names, configs, strict=True)]
        groups = runs.group_by_seed(loaded)
        grouped = ["".join(run.workdir.name for run in group) for group in groups]
        self.assertEqual(grouped, ["abc", "d", "e", "f"])


if __name__ == "__main__":
    absltest.main()
