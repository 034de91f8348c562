"""RIB in pytorch-metric-learning: beside the multi-similarity loss, under its own trainer.

python examples/with_pytorch_metric_learning.py
python examples/with_pytorch_metric_learning.py --data Market-1501-v15.09.15 --height 256
"""

import numpy as np
import torch
from pytorch_metric_learning.losses import MultipleLosses, MultiSimilarityLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.trainers import MetricLossOnly
from torch import nn
from torchvision.models import resnet18

from fastreid_rib import RIBLoss
from pedestrians import Pictures, options, read
from retrieval import accuracy

torch.manual_seed(0)
np.random.seed(0)  # the sampler draws from it
args = options(__doc__, epochs=8).parse_args()
splits = read(args.data)
labels = [label for _, label, _ in splits.train]

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = resnet18()  # resnet18(weights="DEFAULT") begins from ImageNet
model.fc = nn.Identity()  # (n, 512) embeddings instead of ImageNet's classes
model.to(device)
rib = RIBLoss(splits.identities)
# A miner for the one loss only: RIB takes every image of a batch.
loss = MultipleLosses(
    {"multi_similarity": MultiSimilarityLoss(), "rib": rib},
    miners={"multi_similarity": MultiSimilarityMiner()},
)


def start_epoch(trainer: MetricLossOnly) -> None:
    """The trainer counts epochs from 1 and calls this at the end of each; RIB counts from 0."""
    report = rib.start_epoch(trainer.epoch)
    if report:
        print(f"clusters tell {report['mutual_information']:.2f} nats about identities")


trainer = MetricLossOnly(
    models={"trunk": model},
    optimizers={"trunk_optimizer": torch.optim.Adam(model.parameters(), lr=1e-3)},
    batch_size=32,
    loss_funcs={"metric_loss": loss},
    dataset=Pictures(splits.train, args.height, augment=True),
    sampler=MPerClassSampler(labels, m=4, length_before_new_iter=len(labels)),
    data_and_label_getter=lambda batch: batch[:2],  # without the camera
    dataloader_num_workers=0,
    end_of_epoch_hook=start_epoch,
)
print("before:", accuracy(model, splits, args.height))
rib.start_epoch(0)
trainer.train(num_epochs=args.epochs)
print("after:", accuracy(model, splits, args.height))
