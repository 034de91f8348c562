"""Errors that come at once and say what to write, where FastReID hangs or fails later."""

from types import ModuleType
from typing import Any, Callable, Iterator, List, Optional, Sequence

from fastreid_rib.base.patching import wrap


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
    not a multiple of NUM_INSTANCE do train, and those must still do so.
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
    """``SetReWeightSampler`` fills batches.

    FastReID's adds an array to a list, which fails, and compares one draw of every camera with a
    batch, which its own check wants to be several draws.

    Args:
        module: ``fastreid.data.samplers.triplet_sampler``.

    Raises:
        ValueError: if DATALOADER.SET_WEIGHT does not have one weight for each camera.
    """

    def init(
        stock: Callable[..., None], self: Any, data_source: Any, *args: Any, **kw: Any
    ) -> None:
        weights = kw["set_weight"] if "set_weight" in kw else args[2]
        cameras = sorted({item[2] for item in data_source})
        if cameras != list(range(len(weights))) or not sum(weights):
            raise ValueError(
                f"SetReWeightSampler draws DATALOADER.SET_WEIGHT[c] identities from camera (set) "
                f"c: expected one weight for each of the {len(cameras)} cameras "
                f"{cameras[:10]}, got {tuple(weights)}. Write as many weights as there are "
                f"cameras, numbered from 0."
            )
        stock(self, data_source, *args, **kw)

    def indices(stock: Callable[..., Any], self: Any) -> Iterator[int]:
        draws = module.np.random  # as FastReID's samplers have it
        draws.seed(self._seed)
        while True:
            batch: List[int] = []
            while len(batch) < self.batch_size:
                for camera, identities in enumerate(self.set_weight):
                    chosen = draws.choice(
                        self.cam_pid[camera],
                        identities,
                        replace=False,
                        p=self.set_pid_prob[camera],
                    )
                    for images in (self.pid_index[identity] for identity in chosen):
                        again = len(images) < self.num_instances
                        batch += draws.choice(images, self.num_instances, again).tolist()
            draws.shuffle(batch)
            yield from module.reorder_index(batch, self._world_size)

    wrap(module.SetReWeightSampler, "__init__", init)
    wrap(module.SetReWeightSampler, "_infinite_indices", indices)


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


def one_identity(module: ModuleType) -> None:
    """Cross-entropy over a single identity is named as such; it was a division by zero.

    Args:
        module: ``fastreid.modeling.losses.cross_entroy_loss``.
    """

    def loss(stock: Callable[..., Any], outputs: Any, *args: Any, **kwargs: Any) -> Any:
        if outputs.size(1) < 2:
            raise ValueError(
                "CrossEntropyLoss needs at least two identities, but MODEL.HEADS.NUM_CLASSES is "
                f"{outputs.size(1)}: the training set has nothing to tell apart. Check "
                "DATASETS.NAMES, or take CrossEntropyLoss out of MODEL.LOSSES.NAME."
            )
        return stock(outputs, *args, **kwargs)

    wrap(module, "cross_entropy_loss", loss)


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
