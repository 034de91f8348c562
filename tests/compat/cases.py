"""Small uses of FastReID; each shows a defect unless its repair is at work."""

import os
import signal
import stat
import tempfile
from contextlib import contextmanager

import fastreid_rib  # noqa: F401  arms the hook

# isort: split
import numpy as np
import torch
from fastreid.config import get_cfg
from fastreid.data import build_reid_train_loader
from fastreid.data.build import samplers
from fastreid.solver import build_lr_scheduler, build_optimizer
from of_itself import case, ends, write_report


def small_cfg(**solver):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    for key, value in dict({"OPT": "SGD", "BASE_LR": 0.1}, **solver).items():
        setattr(cfg.SOLVER, key, value)
    return cfg


def small_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


def small_batch():
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(16, 4, generator=generator),
        torch.randint(0, 3, (16,), generator=generator),
    )


def steps(model, optimizer, count=5):
    """Trains; returns the losses and the sum of all gradients' sizes after the last step."""
    images, labels = small_batch()
    losses = []
    for _ in range(count):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


@case("zero-grad", "zero-grad-swa")
def learned():
    """Losses of five steps with the optimizer that FastReID builds."""
    model = small_model()
    built = build_optimizer(small_cfg(), model)
    return steps(model, built[0])


class Pictures(torch.utils.data.Dataset):
    def __init__(self, broken=()):
        self.broken = broken

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index in self.broken:
            raise OSError(f"image {index} is truncated")
        return {"images": torch.full((3, 2, 2), float(index)), "targets": int(index)}


def picture_loader(broken=(), workers=0):
    return build_reid_train_loader(
        Pictures(broken),
        sampler=samplers.TrainingSampler(8, shuffle=False, seed=0),
        total_batch_size=4,
        num_workers=workers,
    )


@case("cpu-loader", "cpu-model-loader", "loader-errors")
def iterate_loader():
    """Targets of the first two batches of an endless loader."""
    batches = iter(picture_loader())
    return [next(batches)["targets"].tolist() for _ in range(2)]


@case("cuhk03-bool")
def bool_of_cuhk03():
    """Three queries, gallery of three identities seen by the other camera: everything is found."""
    from fastreid.evaluation.rank import evaluate_rank

    identities = np.arange(3)
    cmc, mean_ap = evaluate_rank(
        1.0 - np.eye(3, dtype=np.float32),
        identities,
        identities,
        np.zeros(3, int),
        np.ones(3, int),
        use_metric_cuhk03=True,
        use_cython=False,
    )
    return [cmc.tolist(), float(mean_ap)]


@case("small-gallery")
def small_gallery(use_cython=False):
    """Two queries, of which one must leave out the nearest picture, its own camera's."""
    from fastreid.evaluation.rank import evaluate_rank

    distances = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]], np.float32)
    gallery, cameras = np.array([0, 1, 0, 1]), np.array([0, 1, 1, 1])
    cmc, precision, penalty = evaluate_rank(
        distances, np.array([0, 1]), gallery, np.array([0, 0]), cameras, use_cython=use_cython
    )
    return [list(map(float, values)) for values in (cmc, precision, penalty)]


@case("aqe-gallery")
def expanded_beyond_the_gallery():
    """Five pictures, each of which is to be averaged with its 99 nearest."""
    from fastreid.evaluation.query_expansion import aqe

    query, gallery = aqe(torch.eye(5)[:2], torch.eye(5)[2:], 1, 99, 0.0)
    return [list(query.shape), list(gallery.shape)]


@case("rerank-gallery")
def reranked_beyond_the_gallery():
    """Re-ranked distances of six pictures, by their 20 nearest and by their 6 nearest."""
    from fastreid.utils.compute_dist import compute_jaccard_distance as distance

    features = torch.rand(6, 4, generator=torch.Generator().manual_seed(2))
    return [distance(features, k1=k1, k2=2, search_option=3).tolist() for k1 in (20, 6)]


@case("cpu-rerank")
def reranked():
    from fastreid.utils.compute_dist import compute_jaccard_distance

    return list(compute_jaccard_distance(torch.rand(12, 4), k1=4, k2=2).shape)


@case("compile-ranking")
def failing_make():
    """A machine where compiling fails: the first `make` of PATH does."""
    from fastreid.evaluation.rank_cylib import compile_helper

    with tempfile.TemporaryDirectory() as folder:
        make = os.path.join(folder, "make")
        with open(make, "w") as file:
            file.write("#!/bin/sh\nexit 2\n")
        os.chmod(make, stat.S_IRWXU)
        os.environ["PATH"] = folder + os.pathsep + os.environ["PATH"]
        compile_helper()


@case("image-tensors")
def black_and_white():
    """The dtype of a picture of one bit a pixel."""
    from fastreid.data.transforms.functional import to_tensor
    from PIL import Image

    return str(to_tensor(Image.new("1", (4, 2), 1)).dtype)


def _sampled(name, *args):
    items = [("", pid, cam) for pid in range(3) for cam in (0, 1) for _ in range(2)]
    return ends(lambda: next(iter(getattr(samplers, name)(items, *args))))


@case("identity-batches")
def batches_that_never_come():
    """Whether the samplers give a first picture: four identities are asked for, of three."""
    names = "BalancedIdentitySampler", "NaiveIdentitySampler"
    return [_sampled(name, 16, 4, 0) for name in names]


@case("set-reweight")
def reweighted():
    return _sampled("SetReWeightSampler", 8, 2, [1, 1], 0)


@case("cosine-warmup")
def annealed_after_a_long_warm_up():
    """The learning rate after three epochs of two steps, five of which warm up."""
    cfg = small_cfg(SCHED="CosineAnnealingLR", WARMUP_ITERS=5, MAX_EPOCH=3)
    optimizer = build_optimizer(cfg, small_model())[0]
    schedulers = build_lr_scheduler(cfg, optimizer, 2)
    for _ in range(6):
        schedulers["warmup_sched"].step()
    schedulers["lr_sched"].step()  # as the trainer does after the last epoch
    return optimizer.param_groups[0]["lr"]


@case("empty-epoch")
def empty_epoch():
    model = small_model()
    cfg = small_cfg(WARMUP_ITERS=10)
    build_lr_scheduler(cfg, build_optimizer(cfg, model)[0], 0)


@case("one-identity")
def one_identity():
    """FastReID's cross-entropy where there is one class."""
    from fastreid.modeling.losses import cross_entropy_loss

    cross_entropy_loss(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64), 0.1)


@case("optimizer-pair")
def pair_as_optimizer():
    """What tools/plain_train_net.py does with the result."""
    model = small_model()
    optimizer = build_optimizer(small_cfg(), model)
    build_lr_scheduler(small_cfg(WARMUP_ITERS=2, MAX_EPOCH=3), optimizer, 2)
    return steps(model, optimizer)


@contextmanager
def group_of_one():
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1
        )
        try:
            yield torch.distributed.group.WORLD
        finally:
            torch.distributed.destroy_process_group()


@case("cpu-ddp")
def ddp():
    """FastReID's DDP around a CPU model, in a group of one process."""
    from fastreid.engine.defaults import DistributedDataParallel

    with group_of_one():
        model = DistributedDataParallel(small_model(), device_ids=[0], broadcast_buffers=False)
        return list(model(small_batch()[0]).shape)


@case("sync-bn-message")
def sync_bn():
    """One training step of syncBN on the CPU in a process group."""
    from fastreid.layers import get_norm

    with group_of_one():
        get_norm("syncBN", 3)(torch.rand(2, 3, 2, 2))


@case("amp-message")
def amp_trainer():
    """Builds FastReID's AMP trainer around a CPU model."""
    from fastreid.engine.train_loop import AMPTrainer

    AMPTrainer(small_model(), [], None, None)


@case("random-affine")
def affine():
    """Shape of an image after INPUT.AFFINE."""
    from fastreid.data.transforms import build_transforms
    from PIL import Image

    cfg = get_cfg()
    cfg.INPUT.AFFINE.ENABLED = True
    cfg.INPUT.SIZE_TRAIN = [32, 16]
    return list(build_transforms(cfg, is_train=True)(Image.new("RGB", (16, 32))).shape)


@case("checkpoint-scalars")
def load_scalars():
    """A checkpoint with a NumPy metric in it, saved and loaded by FastReID."""
    from fastreid.utils.checkpoint import Checkpointer

    with tempfile.TemporaryDirectory() as folder:
        Checkpointer(small_model(), folder).save("one", metric=np.float64(71.5), epoch=np.int64(3))
        rest = Checkpointer(small_model()).load(os.path.join(folder, "one.pth"))
    return [float(rest["metric"]), int(rest["epoch"])]


class Program:
    """What a pickle can do: call anything, here `os.mkdir`."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@case("checkpoint-code")
def load_code(**how):
    """Whether code in a checkpoint runs when FastReID loads it; raises where it is refused."""
    from fastreid.utils.checkpoint import Checkpointer

    with tempfile.TemporaryDirectory() as folder:
        path, sign = os.path.join(folder, "odd.pth"), os.path.join(folder, "it-ran")
        torch.save({"model": small_model().state_dict(), "odd": Program(sign)}, path, **how)
        try:
            Checkpointer(small_model()).load(path)
        except Exception:
            if not os.path.exists(sign):
                raise
        return os.path.exists(sign)


@case("checkpoint-errors")
def load_truncated():
    """FastReID resumes from a checkpoint that lost its second half; another one is beside it."""
    from fastreid.utils.checkpoint import Checkpointer

    with tempfile.TemporaryDirectory() as folder:
        checkpointer = Checkpointer(small_model(), folder)
        checkpointer.save("model_0000")
        checkpointer.save("model_0001")
        path = os.path.join(folder, "model_0001.pth")
        os.truncate(path, os.path.getsize(path) // 2)
        checkpointer.resume_or_load("", resume=True)


@case("checkpoint-write")
def killed_writer():
    """Whether model_best.pth still loads after a process was killed while it wrote it anew."""
    from fastreid.utils.checkpoint import Checkpointer

    class Deadly:
        def __reduce__(self):  # reached when the file is open, long before it is complete
            os.kill(os.getpid(), signal.SIGKILL)

    with tempfile.TemporaryDirectory() as folder:
        checkpointer = Checkpointer(small_model(), folder)
        checkpointer.save("model_best")
        child = os.fork()
        if not child:
            checkpointer.save("model_best", odd=Deadly())
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        checkpointer.resume_or_load("", resume=True)
        return sorted(os.listdir(folder))


@case("lost-pictures")
def lost_folder():
    """Reads a picture whose folder is not there any more."""
    from fastreid.data.data_utils import read_image

    read_image(os.path.join(tempfile.gettempdir(), "no-such-root", "0001_c1s1_000001_00.jpg"))


@case("nan-term")
def nan_of_a_rank():
    """FastReID's trainer writes the losses of two processes, one of them NaN in the second."""
    from fastreid.engine import train_loop
    from fastreid.utils import comm
    from fastreid.utils.events import EventStorage

    model = small_model()
    trainer = train_loop.SimpleTrainer(model, [], None, None)
    trainer.iter = 7
    gather = comm.gather
    other = {"loss_cls": float("nan"), "loss_rib": 0.5, "data_time": 0.0}
    comm.gather = lambda data: [*gather(data), other]
    try:
        with EventStorage():
            terms = {"loss_cls": torch.tensor(1.0), "loss_rib": torch.tensor(0.25)}
            trainer._write_metrics(terms, data_time=0.0)
    finally:
        comm.gather = gather


@case("regnet-configs")
def regnet():
    """Features of the two architectures that read files of settings, away from any checkout."""
    from fastreid.modeling.backbones import build_backbone

    cfg = get_cfg()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    shapes = []
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for name, depth in (("regnet", "200x"), ("effnet", "b0")):
                cfg.MODEL.BACKBONE.NAME = f"build_{name}_backbone"
                cfg.MODEL.BACKBONE.DEPTH = depth
                with torch.no_grad():
                    shapes.append(list(build_backbone(cfg).eval()(torch.rand(1, 3, 64, 32)).shape))
        finally:
            os.chdir(here)
    return shapes


def labels_of(*items, relabel):
    """What the loader of a data set gives of some pictures: identities, cameras."""
    from fastreid.data import common
    from fastreid.data.build import fast_batch_collator

    stock, common.read_image = common.read_image, lambda path: torch.zeros(3, 2, 2)
    try:
        pictures = common.CommDataset([("a.jpg", *item) for item in items], relabel=relabel)
        batch = fast_batch_collator([pictures[i] for i in range(len(pictures))])
    finally:
        common.read_image = stock
    return [batch["targets"].tolist(), batch["camids"].tolist()]


@case("word-labels")
def words_of_a_test_set():
    return labels_of(("anna", "door"), ("ben", "yard"), ("anna", "yard"), relabel=False)


@case("word-labels")
def words_and_numbers():
    return labels_of(("anna", 2), (7, 2), (3, 1), relabel=True)


@case("teacher-device")
def teacher_of_another_device():
    """A student on the CPU, whose teacher's config says "meta"; where the teacher is."""
    from fastreid.modeling import build_model

    with tempfile.TemporaryDirectory() as folder:
        cfg = get_cfg()
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.BACKBONE.NAME = "build_osnet_backbone"
        cfg.MODEL.BACKBONE.DEPTH = "x0_25"
        cfg.MODEL.BACKBONE.FEAT_DIM = 128
        cfg.MODEL.HEADS.NUM_CLASSES = 3
        weights = os.path.join(folder, "teacher.pth")
        torch.save({"model": build_model(cfg).state_dict()}, weights)
        teacher = cfg.clone()
        teacher.MODEL.DEVICE = "meta"
        config = os.path.join(folder, "teacher.yml")
        with open(config, "w") as file:
            file.write(teacher.dump())
        cfg.MODEL.META_ARCHITECTURE = "Distiller"
        cfg.KD.MODEL_CONFIG, cfg.KD.MODEL_WEIGHTS = [config], [weights]
        (found,) = build_model(cfg).model_ts
        return str(next(found.parameters()).device)


@case("visualizer-numbers")
def drawn_ranks():
    """Pictures of two queries' ranks, numbers as text; how many there are."""
    from fastreid.utils import visualizer

    def draw(self, queries, output, ranks, *rest):
        drawn.extend((query, rank) for query in queries for rank in range(1 + ranks))

    class Drawing(visualizer.Visualizer):
        save_rank_result = draw

    drawn = []
    shown = Drawing.__new__(Drawing)
    shown.all_ap = np.array([0.5, 0.2, 0.9])
    shown.vis_rank_list("folder", False, "2", max_rank="4")
    return len(drawn)


if __name__ == "__main__":
    write_report()
