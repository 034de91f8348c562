"""RIB for a ViT that is trained as TransReID's baseline is, before or after its BNNeck.

    python examples/vit_with_bnneck.py
    python examples/vit_with_bnneck.py --rib after

A class token gathers the embedding from patches that overlap. The triplet loss takes it as it is,
the classifier after a batch normalisation (BNNeck): Luo et al., arXiv 1903.07071; He et al.,
arXiv 2102.04378. The ViT is small, and it starts from nothing.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus
from torch.utils.data import DataLoader
from torchvision.models.vision_transformer import Encoder

from fastreid_rib import RIBLoss
from pedestrians import IdentityBatches, Pictures, options, read
from retrieval import accuracy


class ViT(nn.Module):
    """A small ViT on overlapping patches; (n, 3, height, height / 2) to (n, 192)."""

    def __init__(self, height: int, patch: int = 8, stride: int = 6, dim: int = 192) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, patch, stride)
        rows, columns = ((side - patch) // stride + 1 for side in (height, height // 2))
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.encoder = Encoder(
            seq_length=1 + rows * columns,
            num_layers=4,
            num_heads=4,
            hidden_dim=dim,
            mlp_dim=4 * dim,
            dropout=0.0,
            attention_dropout=0.0,
        )

    def forward(self, images: Tensor) -> Tensor:
        """The class token after the last block."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        class_token = self.class_token.expand(len(images), -1, -1)
        return self.encoder(torch.cat([class_token, tokens], dim=1))[:, 0]


def soft_triplet(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Triplet loss with the hardest positive and negative of each image, and a soft margin."""
    distances = torch.cdist(embeddings, embeddings)
    same = labels[:, None] == labels
    positive = distances.masked_fill(~same, 0).amax(1)
    negative = distances.masked_fill(same, float("inf")).amin(1)
    return softplus(positive - negative).mean()


torch.manual_seed(0)
parser = options(__doc__, epochs=12)
parser.add_argument(
    "--rib", choices=["before", "after"], default="before", help="BNNeck (%(default)s)"
)
args = parser.parse_args()
splits = read(args.data)
pictures = Pictures(splits.train, args.height, augment=True)
loader = DataLoader(pictures, batch_sampler=IdentityBatches(splits.train))

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
vit = ViT(args.height).to(device)
neck = nn.BatchNorm1d(192).to(device)
neck.bias.requires_grad_(False)
classifier = nn.Linear(192, splits.identities, bias=False).to(device)
rib = RIBLoss(splits.identities)
parameters = [*vit.parameters(), *neck.parameters(), *classifier.parameters()]
optimizer = torch.optim.AdamW(parameters, lr=1e-3)

print("before:", accuracy(vit, splits, args.height))
for epoch in range(args.epochs):
    vit.train()
    report = rib.start_epoch(epoch)
    for images, labels, _ in loader:
        labels = labels.to(device)
        before = vit(images.to(device))
        after = neck(before)
        losses = {
            "identity": cross_entropy(classifier(after), labels),
            "triplet": soft_triplet(before, labels),
            "RIB": rib({"before": before, "after": after}[args.rib], labels),
        }
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    told = f", clusters tell {report['mutual_information']:.2f} nats" if report else ""
    print(f"epoch {epoch}: " + ", ".join(f"{k} {v:.2f}" for k, v in losses.items()) + told)
print("after:", accuracy(vit, splits, args.height))
