"""Small uses of FastReID; each shows a defect unless its repair is at work."""

import os
import signal
import tempfile

import numpy as np
import torch
from fastreid.config import get_cfg
from fastreid.data import build_reid_train_loader
from fastreid.data.build import samplers
from fastreid.solver import build_lr_scheduler, build_optimizer


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


def iterate_loader():
    """Targets of the first three batches of an endless loader."""
    batches = iter(picture_loader())
    return [next(batches)["targets"].tolist() for _ in range(3)]


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


def small_gallery(**kwargs):
    """Two queries, of which one must leave out the nearest picture, its own camera's."""
    from fastreid.evaluation.rank import evaluate_rank

    distances = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]], np.float32)
    gallery, cameras = np.array([0, 1, 0, 1]), np.array([0, 1, 1, 1])
    cmc, precision, penalty = evaluate_rank(
        distances, np.array([0, 1]), gallery, np.array([0, 0]), cameras, **kwargs
    )
    return [list(map(float, values)) for values in (cmc, precision, penalty)]


def expanded_beyond_the_gallery():
    """Five pictures, each of which is to be averaged with its 99 nearest."""
    from fastreid.evaluation.query_expansion import aqe

    query, gallery = aqe(torch.eye(5)[:2], torch.eye(5)[2:], 1, 99, 0.0)
    return [list(query.shape), list(gallery.shape)]


def reranked_beyond_the_gallery(k1=20):
    """Re-ranked distances of six pictures, by their 20 nearest."""
    from fastreid.utils.compute_dist import compute_jaccard_distance

    features = torch.rand(6, 4, generator=torch.Generator().manual_seed(2))
    return compute_jaccard_distance(features, k1=k1, k2=2, search_option=3).tolist()


def annealed_after_a_long_warm_up():
    """The learning rate after three epochs of two steps, five of which warm up."""
    cfg = small_cfg(SCHED="CosineAnnealingLR", WARMUP_ITERS=5, MAX_EPOCH=3)
    optimizer = build_optimizer(cfg, small_model())[0]
    schedulers = build_lr_scheduler(cfg, optimizer, 2)
    for _ in range(6):
        schedulers["warmup_sched"].step()
    schedulers["lr_sched"].step()  # as the trainer does after the last epoch
    return optimizer.param_groups[0]["lr"]


def empty_epoch():
    model = small_model()
    cfg = small_cfg(WARMUP_ITERS=10)
    build_lr_scheduler(cfg, build_optimizer(cfg, model)[0], 0)


def one_identity():
    """FastReID's cross-entropy where there is one class."""
    from fastreid.modeling.losses import cross_entropy_loss

    cross_entropy_loss(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64), 0.1)


def pair_as_optimizer():
    """What tools/plain_train_net.py does with the result."""
    model = small_model()
    optimizer = build_optimizer(small_cfg(), model)
    build_lr_scheduler(small_cfg(WARMUP_ITERS=2, MAX_EPOCH=3), optimizer, 2)
    return steps(model, optimizer)


def ddp():
    """FastReID's DDP around a CPU model, in a group of one process."""
    from fastreid.engine import defaults

    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1
        )
        try:
            model = defaults.DistributedDataParallel(
                small_model(), device_ids=[0], broadcast_buffers=False
            )
            return list(model(small_batch()[0]).shape)
        finally:
            torch.distributed.destroy_process_group()


def sync_bn():
    """One training step of syncBN on the CPU in a process group."""
    from fastreid.layers import get_norm

    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1
        )
        try:
            get_norm("syncBN", 3)(torch.rand(2, 3, 2, 2))
        finally:
            torch.distributed.destroy_process_group()


def amp_trainer():
    """Builds FastReID's AMP trainer around a CPU model."""
    from fastreid.engine.train_loop import AMPTrainer

    AMPTrainer(small_model(), [], None, None)


def affine():
    """Shape of an image after INPUT.AFFINE."""
    from fastreid.data.transforms import build_transforms
    from PIL import Image

    cfg = get_cfg()
    cfg.INPUT.AFFINE.ENABLED = True
    cfg.INPUT.SIZE_TRAIN = [32, 16]
    return list(build_transforms(cfg, is_train=True)(Image.new("RGB", (16, 32))).shape)


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


def lost_folder():
    """Reads a picture whose folder is not there any more."""
    from fastreid.data.data_utils import read_image

    read_image(os.path.join(tempfile.gettempdir(), "no-such-root", "0001_c1s1_000001_00.jpg"))


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

    common.read_image = lambda path: torch.zeros(3, 2, 2)
    pictures = common.CommDataset([("a.jpg", *item) for item in items], relabel=relabel)
    batch = fast_batch_collator([pictures[i] for i in range(len(pictures))])
    return batch["targets"].tolist(), batch["camids"].tolist()


def words_of_a_test_set():
    return labels_of(("anna", "door"), ("ben", "yard"), ("anna", "yard"), relabel=False)


def words_and_numbers():
    return labels_of(("anna", 2), (7, 2), (3, 1), relabel=True)


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


def drawn_ranks():
    """Pictures of two queries' ranks, numbers as text; how many there are."""
    from fastreid.utils import visualizer

    def draw(self, queries, output, ranks, *rest):
        drawn.extend((query, rank) for query in queries for rank in range(1 + ranks))

    drawn = []
    visualizer.Visualizer.save_rank_result = draw
    shown = visualizer.Visualizer.__new__(visualizer.Visualizer)
    shown.all_ap = np.array([0.5, 0.2, 0.9])
    shown.vis_rank_list("folder", False, "2", max_rank="4")
    return len(drawn)
