"""RIB in torchreid: its engine for the triplet loss, with RIB added by a subclass.

python examples/with_torchreid.py
python examples/with_torchreid.py --data Market-1501-v15.09.15 --height 256 --epochs 60
"""

from typing import Any

import torch
import torchreid
from torch import Tensor

from fastreid_rib import RIBLoss
from pedestrians import options, read

torchreid.utils.set_random_seed(0)
args = options(__doc__, epochs=8).parse_args()
splits = read(args.data)


class Pedestrians(torchreid.data.ImageDataset):
    """The pictures of `splits`, as torchreid wants a data set."""

    def __init__(self, root: str = "", **kwargs: Any) -> None:
        super().__init__(*splits, **kwargs)


class RIBTripletEngine(torchreid.engine.ImageTripletEngine):
    """Adds RIB to what torchreid takes the triplet loss of, with that loss's weight."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rib = RIBLoss(self.datamanager.num_train_pids)

    def train(self, *args: Any, **kwargs: Any) -> None:
        """An epoch."""
        report = self.rib.start_epoch(self.epoch)
        if report:
            print(f"clusters tell {report['mutual_information']:.2f} nats about identities")
        super().train(*args, **kwargs)

    def save_model(self, epoch: int, rank1: float, save_dir: str, is_best: bool = False) -> None:
        """What a run needs to resume: torchreid's checkpoint, and RIB's statistics beside it."""
        super().save_model(epoch, rank1, save_dir, is_best)
        torch.save(self.rib.state_dict(), f"{save_dir}/rib.pth")

    def compute_loss(self, criterion: torch.nn.Module, outputs: Tensor, targets: Tensor) -> Tensor:
        """One of the losses of a batch; torchreid prints that of the triplet as loss_t."""
        loss = super().compute_loss(criterion, outputs, targets)
        if criterion is self.criterion_t:
            loss = loss + self.rib(outputs, targets)
        return loss


torchreid.data.register_image_dataset("pedestrians", Pedestrians)
data = torchreid.data.ImageDataManager(
    sources="pedestrians",
    height=args.height,
    width=args.height // 2,
    transforms=["random_flip", "random_crop"],
    train_sampler="RandomIdentitySampler",
    workers=0,
)
# loss="triplet": the model gives classes and embeddings
model = torchreid.models.build_model(
    "resnet18", data.num_train_pids, loss="triplet", pretrained=False
)
if torch.cuda.is_available():
    model = torch.nn.DataParallel(model).cuda()
optimizer = torchreid.optim.build_optimizer(model, optim="adam", lr=1e-3)
# torchreid does not save a model without one
scheduler = torchreid.optim.build_lr_scheduler(optimizer, "cosine", max_epoch=args.epochs)

engine = RIBTripletEngine(data, model, optimizer, scheduler=scheduler)
engine.run(test_only=True)
engine.run(save_dir="logs/torchreid", max_epoch=args.epochs)
