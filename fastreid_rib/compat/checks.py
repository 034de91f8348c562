"""Errors that come at once and say what to write, where FastReID hangs or fails later."""

from types import ModuleType
from typing import Any, Callable, List, Optional, Sequence

from .patching import wrap


def identity_samplers(module: ModuleType) -> None:
    """The identity samplers refuse a batch that they would look for without end.

    Args:
        module: ``fastreid.data.samplers.triplet_sampler``.
    """

    def checked(name: str) -> Callable[..., None]:
        def init(stock: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
            stock(self, *args, **kwargs)
            refuse_impossible_batch(
                name,
                [len(images) for images in self.pid_index.values()],
                self.batch_size // self._world_size,
                self.num_instances,
                self._world_size,
            )

        return init

    for name in ("BalancedIdentitySampler", "NaiveIdentitySampler"):
        wrap(getattr(module, name), "__init__", checked(name))


def refuse_impossible_batch(
    sampler: str, images: Sequence[int], batch: int, instances: int, processes: int
) -> None:
    """Does nothing if the sampler can ever fill a batch.

    Args:
        sampler: name of FastReID's sampler.
        images: number of training images of each identity.
        batch: images in a batch of one process.
        instances: images per identity in a batch.
        processes: number of processes.

    Raises:
        ValueError: with the keys, the numbers that came, and numbers that would work.
    """
    if fills_batches(sampler, images, batch, instances, processes):
        return
    remedies = [
        f"SOLVER.IMS_PER_BATCH {total}"
        for total in [_largest_batch(sampler, images, batch, instances, processes)]
        if total
    ] + [
        f"DATALOADER.NUM_INSTANCE {fewer}"
        for fewer in _other_instances(sampler, images, batch, instances, processes)
    ]
    each = f" ({processes} processes with {batch} each)" if processes > 1 else ""
    raise ValueError(
        f"{sampler} can never fill a batch of SOLVER.IMS_PER_BATCH {batch * processes}{each} "
        f"with DATALOADER.NUM_INSTANCE {instances}: it needs IMS_PER_BATCH to be a multiple of "
        f"NUM_INSTANCE x processes, and IMS_PER_BATCH / NUM_INSTANCE identities of the "
        f"{len(images)} in the training set. Write "
        + (" or ".join(remedies) or "DATALOADER.SAMPLER_TRAIN TrainingSampler")
        + "."
    )


def fills_batches(
    sampler: str, images: Sequence[int], batch: int, instances: int, processes: int
) -> bool:
    """Whether the sampler ever yields; arguments as in `refuse_impossible_batch`.

    Follows what FastReID's loops do rather than what they are meant to do: some batches that are
    not a multiple of NUM_INSTANCE do train, and those must go on doing so.
    """
    identities = batch // instances  # of one process
    total = batch * processes
    if not identities or total % instances:
        return False
    if sampler == "BalancedIdentitySampler":
        usable = len(images) - len(images) % (identities * processes)
        return usable * instances >= total
    # Naive: rounds of `identities` distinct ones, each at most len // instances times.
    if total % (identities * instances):
        return False
    rounds = total // (identities * instances)
    return sum(min(max(1, n // instances), rounds) for n in images) >= rounds * identities


def _largest_batch(
    sampler: str, images: Sequence[int], batch: int, instances: int, processes: int
) -> Optional[int]:
    for identities in range(max(1, batch // instances), 0, -1):
        if fills_batches(sampler, images, identities * instances, instances, processes):
            return identities * instances * processes
    return None


def _other_instances(
    sampler: str, images: Sequence[int], batch: int, instances: int, processes: int
) -> List[int]:
    """The nearest smaller and larger number per identity that suit the batch as it is."""

    def suits(n: int) -> bool:
        return batch % n == 0 and fills_batches(sampler, images, batch, n, processes)

    smaller = [n for n in range(instances - 1, 1, -1) if suits(n)]
    larger = [n for n in range(instances + 1, batch + 1) if suits(n)]
    return smaller[:1] + larger[:1]


def set_reweight_sampler(module: ModuleType) -> None:
    """``SetReWeightSampler`` yields: it drew less than a batch, threw it away, and began again.

    Its own check asks for batches of several draws; with the length of one draw as its unit the
    loader puts them together.

    Args:
        module: ``fastreid.data.samplers.triplet_sampler``.

    Raises:
        ValueError: if DATALOADER.SET_WEIGHT does not have one weight for each camera.
    """

    def init(
        stock: Callable[..., None],
        self: Any,
        data_source: Any,
        mini_batch_size: int,
        num_instances: int,
        set_weight: Any,
        seed: Optional[int] = None,
    ) -> None:
        cameras = sorted({item[2] for item in data_source})
        if cameras != list(range(len(set_weight))) or not sum(set_weight):
            raise ValueError(
                f"SetReWeightSampler draws DATALOADER.SET_WEIGHT[c] identities from camera (set) "
                f"c: expected one weight for each of the {len(cameras)} cameras "
                f"{cameras[:10]}, got {tuple(set_weight)}. Write as many weights as there are "
                f"cameras, numbered from 0."
            )
        stock(self, data_source, mini_batch_size, num_instances, set_weight, seed)
        self.batch_size = sum(self.set_weight) * self.num_instances

    wrap(module.SetReWeightSampler, "__init__", init)


def images_for_a_batch(module: ModuleType) -> None:
    """A training set smaller than one batch is named as such; it was a division by zero.

    Args:
        module: ``fastreid.solver.build``.
    """

    def build(stock: Callable[..., Any], cfg: Any, optimizer: Any, iters_per_epoch: int) -> Any:
        if iters_per_epoch < 1:
            raise ValueError(
                f"An epoch has no iteration: the training set holds fewer images than one batch. "
                f"Expected SOLVER.IMS_PER_BATCH to be at most the number of training images, got "
                f"{cfg.SOLVER.IMS_PER_BATCH}. Write a smaller SOLVER.IMS_PER_BATCH, or check "
                f"DATASETS.NAMES {cfg.DATASETS.NAMES}."
            )
        return stock(cfg, optimizer, iters_per_epoch)

    wrap(module, "build_lr_scheduler", build)


def sync_batch_norm(module: ModuleType) -> None:
    """SyncBN on the CPU says what to write instead.

    Args:
        module: ``fastreid.layers.batch_norm``.
    """

    def forward(stock: Callable[..., Any], self: Any, input: Any) -> Any:
        try:
            return stock(self, input)
        except ValueError as error:
            if input.device.type != "cpu":
                raise
            raise ValueError(
                f"syncBN runs on GPUs only, and the model is on the CPU: write "
                f"MODEL.BACKBONE.NORM BN and MODEL.HEADS.NORM BN. (torch: {error})"
            ) from error

    # On FastReID's subclass, so that torch's own class stays as it is.
    module.SyncBatchNorm.forward = module.torch.nn.SyncBatchNorm.forward
    wrap(module.SyncBatchNorm, "forward", forward)


def amp_on_cpu(module: ModuleType) -> None:
    """Mixed precision without CUDA is refused when the trainer is built.

    Args:
        module: ``fastreid.engine.train_loop``.
    """

    def init(stock: Callable[..., None], self: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        device = next((p.device.type for p in model.parameters()), "none")
        if device == "cpu":
            raise ValueError(
                "SOLVER.AMP.ENABLED True needs a model on a GPU, and this one is on the CPU: write "
                "SOLVER.AMP.ENABLED False (or MODEL.DEVICE cuda where there is a GPU)."
            )
        stock(self, model, *args, **kwargs)

    wrap(module.AMPTrainer, "__init__", init)
