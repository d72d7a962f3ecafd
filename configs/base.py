"""Every field there is, with its default. An experiment's file changes a few of them.

Override on the command line by full path: --config.train.steps=6000
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The base configuration. It has no data set and no number of steps that suits everyone."""
    config = ConfigDict()
    config.seed = 0
    config.method = placeholder(str)  # its name in reports; unset: by objective and path

    config.data = ConfigDict()
    # Made on the spot: digits | checkerboard eight_gaussians two_moons pinwheel spirals rings
    # Prepared once: fashion_mnist cifar10 imagenet32 imagenet64 imagenet128 imagenet256
    # Any folder of images: folder
    config.data.name = "digits"
    config.data.version = placeholder(str)  # imagenet32, imagenet64: antialiased | old; required
    config.data.data_dir = placeholder(str)  # unset: $TFDS_DATA_DIR, or ~/tensorflow_datasets
    config.data.size = placeholder(int)  # images become squares of this side; folder: required
    config.data.flip = False  # half of the training images left to right, anew each time
    # memory: decoded once into a file, mapped | device: the same, whole on each device, indexed in
    # the step | records: decoded whenever read
    config.data.storage = "memory"
    config.data.max_corrupt = 10  # unreadable images that are skipped; with more, an error
    config.data.threads = 2  # that read ahead
    config.data.workers = 0  # processes that read ahead; 0: none but this one
    config.data.folder = ConfigDict()
    config.data.folder.path = placeholder(str)  # of PNG, JPEG and WebP files; subfolders: classes
    config.data.folder.channels = 3  # 3: RGB | 1: grey
    config.data.folder.background = "white"  # behind transparent pixels: a colour's name or #rrggbb
    config.data.folder.test_fraction = 0.1  # of the images, by their content's hash
    config.data.folder.exclude = ()  # patterns of file names to leave out, such as "*-thumb.*"

    # What the network is given besides t and x_t.
    config.condition = ConfigDict()
    config.condition.labels = False  # the class
    config.condition.label_dropout = 0.1  # of the labels in training, for guidance
    config.condition.low_resolution = placeholder(int)  # the image in so many pixels a side
    config.condition.filter = "bicubic"  # it is made by: bicubic | bilinear | box
    # Noise added to it in training has a standard deviation from U(0, this), in model space, which
    # the network is told; samples are given none
    config.condition.max_noise = 0.0

    # Of samples given a label: v(none) + scale (v(label) - v(none)), two calls of the network.
    config.guidance = ConfigDict()
    config.guidance.scale = 1.0  # 1: none, one call | more: further towards the label
    config.guidance.interval = (0.0, 1.0)  # of t, outside of which there is none

    # The conditional path p_t(x | x_1); the section of its name holds its parameters.
    config.path = ConfigDict()
    config.path.name = "ot"  # ot | vp | ve
    config.path.ot = ConfigDict({"sigma_min": 1e-5})
    config.path.vp = ConfigDict({"beta_min": 0.1, "beta_max": 20.0, "eps": 1e-5})
    config.path.ve = ConfigDict({"sigma_min": 0.01, "sigma_max": 50.0})

    config.objective = ConfigDict()
    # flow_matching | ddpm | score_matching | scoreflow | maximum_likelihood
    # for super-resolution, without a vector field: regression | sr3
    config.objective.name = "flow_matching"
    config.objective.predicts = "velocity"  # the network's output: velocity | noise | score | data
    config.objective.coupling = "independent"  # how noise and data of a batch are paired
    # How t is drawn: uniform | skewed (towards the data) | for scoreflow importance (by its weight)
    config.objective.time = "uniform"

    # The solve inside a training step, for the objective maximum_likelihood alone.
    config.maximum_likelihood = ConfigDict()
    config.maximum_likelihood.method = "dopri5"
    config.maximum_likelihood.rtol = 1e-5
    config.maximum_likelihood.atol = 1e-5
    config.maximum_likelihood.steps = placeholder(int)  # fixed methods
    config.maximum_likelihood.max_steps = 256  # adaptive methods give up beyond
    config.maximum_likelihood.adjoint = "checkpointed"  # checkpointed | backsolve
    config.maximum_likelihood.divergence = "hutchinson"  # hutchinson | exact
    config.maximum_likelihood.probes = 1

    # Noise levels of the objective sr3, on the VP path.
    config.sr3 = ConfigDict()
    config.sr3.levels = 2000  # between whose neighbours training draws
    config.sr3.steps = 100  # of ancestral sampling, each a call of the network

    config.network = ConfigDict()
    config.network.name = "unet"  # unet (images) | mlp (points)
    config.network.dtype = "float32"  # float32 | bfloat16: computing dtype in training
    # What the network is told of the time: t (of sr3 the noise level) | log_snr (signal to noise)
    config.network.time_input = "t"
    config.network.unet = ConfigDict()
    config.network.unet.channels = 128
    config.network.unet.multipliers = (1, 2, 2, 2)  # width of each level in units of channels
    config.network.unet.depth = 2  # residual blocks a level
    config.network.unet.attention_sides = (16,)  # feature maps of these sides get attention
    config.network.unet.heads = 4
    config.network.unet.head_channels = placeholder(int)  # overrides heads
    config.network.unet.dropout = 0.0
    config.network.unet.scale_shift_norm = True
    config.network.unet.residual_resampling = False  # ADM's resblock_updown
    config.network.unet.conv_resampling = True
    # What the network is told of the time is multiplied by this before its sinusoids, whose
    # frequencies are 1 and less; 1000 is ADM's, and best for the methods compared (docs/results.md)
    config.network.unet.time_scale = 1000.0
    config.network.unet.remat = False  # recompute activations in the backward pass
    config.network.mlp = ConfigDict({"width": 512, "depth": 5, "frequencies": 4})

    # Adam; weight_decay > 0 makes it AdamW.
    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-4  # the peak
    config.optimizer.schedule = "polynomial"  # polynomial | cosine | constant
    config.optimizer.warmup_steps = 0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = placeholder(float)  # of the gradient; unset: no clipping
    config.optimizer.ema_decay = 0.9999

    config.train = ConfigDict()
    config.train.steps = 100_000
    config.train.batch_size = 256  # over all devices
    config.train.accumulate = 1  # parts of the batch that are gone through one after another
    config.train.steps_per_dispatch = 1  # steps that the device takes without Python
    # Updates in a row that were not finite, and not made, before the run goes back to a checkpoint;
    # when it comes to that again, it ends
    config.train.max_skipped = 10
    config.train.log_every = 100
    config.train.sample_every = 5_000
    config.train.checkpoint_every = 5_000
    config.train.keep_last = 2  # newest checkpoints kept
    config.train.keep_every = placeholder(int)  # and every checkpoint at a multiple of this

    # For samples and for likelihoods alike.
    config.solver = ConfigDict()
    config.solver.method = "dopri5"  # euler midpoint heun rk4 | dopri5 tsit5 dopri8 bosh3
    config.solver.rtol = 1e-5  # adaptive methods
    config.solver.atol = 1e-5
    config.solver.steps = placeholder(int)  # fixed methods
    config.solver.grid = "uniform"  # fixed methods: where their steps lie, uniform | edm

    config.evaluate = ConfigDict()
    config.evaluate.weights = ("ema",)  # any of ema, raw
    config.evaluate.seed = 1  # of the noise of samples, dequantisation and probes
    config.evaluate.batch_size = 256
    config.evaluate.images = placeholder(int)  # of the test split; unset: all
    config.evaluate.dequantisations = (1,)  # each K of the importance bound
    config.evaluate.divergence = "hutchinson"  # hutchinson | exact
    config.evaluate.probes = 2  # of hutchinson; a bound of K > 1 takes two or more
    config.evaluate.classes = ()  # rows of the grid of a model of classes, by number; empty: all
    config.evaluate.samples = 64  # in the grid, and in each batch of those generated
    # What samples are judged by: pixels | efficientnet_lite0 | inception; unset: they are not
    config.evaluate.extractor = placeholder(str)
    config.evaluate.weights_file = placeholder(str)  # inception: pytorch-fid's .pth
    # Besides the Fréchet distance: any of inception_score, kernel_distance, precision_recall
    config.evaluate.scores = ()
    config.evaluate.reference = placeholder(str)  # npz of mu and sigma; unset: the training images
    config.evaluate.generated = 50_000  # samples that are judged

    # --mode=upsample
    config.upsample = ConfigDict()
    config.upsample.overlap = 0.25  # of neighbouring tiles, in units of their side; 0.5 at most

    # --mode=figures
    config.figures = ConfigDict()
    config.figures.nfe = (4, 8, 10, 20, 40, 60, 100)  # of the curves over NFE
    config.figures.reference_nfe = 1000  # of the solution that errors are held against
    config.figures.seeds = 256  # samples whose errors are averaged
    config.figures.generated = 5_000  # samples for each Fréchet distance
    config.figures.sample_nfe = (4, 8, 10, 20)  # of the pictures of samples, by midpoint: even

    config.mesh = ConfigDict()
    config.mesh.fsdp = 1  # devices over which parameters and optimiser state are split
    return config
