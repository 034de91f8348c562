"""The core is plain PyTorch: it neither needs nor loads FastReID."""

import pytest


@pytest.mark.published
def test_losses_attention_and_ops_load_no_toolkit(run_script):
    code = (
        "import sys\n"
        "class NoToolkit:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert name.split('.')[0] not in ('fastreid', 'yacs'), name\n"
        "sys.meta_path.insert(0, NoToolkit())\n"
        "from fastreid_rib import RIBLoss, rib_loss\n"
        "import fastreid_rib.ops.reference, torch\n"
        "torch.manual_seed(0)\n"
        "rib = RIBLoss(num_classes=3, warmup_epochs=1)\n"
        "labels = torch.arange(6) % 3\n"
        "for epoch in range(2):\n"
        "    rib.start_epoch(epoch)\n"
        "    embeddings = torch.randn(6, 4, requires_grad=True)\n"
        "    loss = rib(embeddings, labels)\n"
        "loss.backward()\n"
        "from fastreid_rib.attention import ATTENTIONS, build_attention\n"
        "x = torch.randn(1, 16, 2, 2)\n"
        "assert all((build_attention(name, 16)(x) == x).all() for name in ATTENTIONS)\n"
        "assert loss != 0 and embeddings.grad.abs().sum() > 0\n"
        "print('fastreid' in sys.modules, 'yacs' in sys.modules)\n"
    )
    assert "False False" in run_script("-c", code).stdout
