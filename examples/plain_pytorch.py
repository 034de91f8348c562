"""RIB in a training loop of one's own, with a backbone of torchvision.

python examples/plain_pytorch.py
python examples/plain_pytorch.py --data Market-1501-v15.09.15 --height 256 --epochs 60
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from fastreid_rib import RIBLoss
from pedestrians import IdentityBatches, Pictures, options, read
from retrieval import accuracy

torch.manual_seed(0)
args = options(__doc__, epochs=8).parse_args()
splits = read(args.data)
pictures = Pictures(splits.train, args.height, augment=True)
loader = DataLoader(pictures, batch_sampler=IdentityBatches(splits.train))

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
backbone = resnet18()  # resnet18(weights="DEFAULT") begins from ImageNet
backbone.fc = nn.Identity()  # (n, 512) embeddings instead of ImageNet's classes
backbone.to(device)
classifier = nn.Linear(512, splits.identities).to(device)
rib = RIBLoss(splits.identities)
optimizer = torch.optim.Adam([*backbone.parameters(), *classifier.parameters()], lr=1e-3)

print("before:", accuracy(backbone, splits, args.height))
for epoch in range(args.epochs):
    backbone.train()
    report = rib.start_epoch(epoch)  # clusters the embeddings of the epoch before
    for images, labels, cameras in loader:
        labels, cameras = labels.to(device), cameras.to(device)
        embeddings = backbone(images.to(device))
        identity_loss = cross_entropy(classifier(rib.add_camera_noise(embeddings)), labels)
        rib_loss = rib(embeddings, labels, cameras=cameras)  # 0 in the first two epochs
        optimizer.zero_grad()
        (identity_loss + rib_loss).backward()
        optimizer.step()
    told = f", clusters tell {report['mutual_information']:.2f} nats" if report else ""
    print(f"epoch {epoch}: identity loss {identity_loss:.2f}, RIB {rib_loss:.2f}{told}")
print("after:", accuracy(backbone, splits, args.height))
