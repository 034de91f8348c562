"""Draws the figures of the method: docs/method.svg, and one of each attention in docs/attention.

    python tools/draw_method.py

A test compares the drawings in ``docs/`` with what this draws.
"""

from pathlib import Path

from svg import BLUE, FAINT, GREEN, GREY, ORANGE, Drawing

DOCS = Path(__file__).resolve().parent.parent / "docs"


def method():
    """A training step with RIB above, and below it what is made once an epoch."""
    drawing = Drawing(
        900, 350, "The RIB loss: a training step, and the statistics that an epoch makes"
    )
    drawing.text(20, 26, "every step", bold=True, colour=FAINT)
    drawing.box(20, 60, 80, 50, ["images"], GREY)
    drawing.box(125, 60, 95, 50, ["backbone"], BLUE)
    drawing.box(245, 60, 110, 50, ["attention", "(if you like)"], BLUE)
    drawing.box(380, 60, 110, 50, ["embedding F", "pooled, (n, D)"], BLUE)
    for left, right in ((100, 125), (220, 245), (355, 380)):
        drawing.line((left, 85), (right, 85), tip=True)
    drawing.box(555, 20, 195, 44, ["your losses", "cross-entropy, triplet"], GREY)
    drawing.line((490, 75), (520, 75), (520, 42), (555, 42), tip=True)
    drawing.box(
        555, 88, 195, 62, ["soft assignment φ", "of F, less the mean μ,", "to K clusters"], ORANGE
    )
    drawing.line((490, 95), (520, 95), (520, 119), (555, 119), tip=True)
    drawing.box(555, 178, 195, 44, ["RIB", "−mean Σ φ log(Q / P)"], ORANGE)
    drawing.line((652, 150), (652, 178), tip=True)
    drawing.box(800, 98, 80, 44, ["+", "training loss"], GREY)
    drawing.line((750, 42), (840, 42), (840, 98), tip=True)
    drawing.line((750, 200), (840, 200), (840, 142), tip=True)

    drawing.line((20, 245), (880, 245), colour=FAINT)
    drawing.text(20, 268, "once an epoch", bold=True, colour=FAINT)
    drawing.box(335, 280, 200, 48, ["reservoir", "embeddings of an epoch"], GREEN)
    drawing.line((435, 110), (435, 280), tip=True, dashed=True)
    made = [
        "statistics, constant in an epoch",
        "mean μ, centroids by K-means,",
        "class table Q, marginal P",
    ]
    drawing.box(590, 272, 290, 64, made, GREEN)
    drawing.line((535, 304), (590, 304), tip=True, dashed=True)
    drawing.line((700, 272), (700, 222), tip=True, dashed=True)
    drawing.line((610, 272), (610, 234), (535, 234), (535, 135), (555, 135), tip=True, dashed=True)
    return drawing


ATTENTIONS = {
    "dcs": (
        "DCS attention",
        [
            ["Z", "norm(X)"],
            ["mask M", "0 or 1, from Z"],
            ["softmax", "4 cos(Z⊙M, Z⊙M)"],
            ["values", "weights · Z"],
            ["projection", "W_p, b_p"],
        ],
        "+",
    ),
    "self-attention": (
        "Self-attention",
        [
            ["Z", "norm(X)"],
            ["softmax", "4 cos(Z, Z)"],
            ["values", "weights · Z"],
            ["projection", "W_p, b_p"],
        ],
        "+",
    ),
    "se": (
        "Squeeze and excitation",
        [["mean", "over H × W"], ["W_1, ReLU", "C / 16"], ["norm, W_2", "C"], ["gate", "2 σ"]],
        "×",
    ),
    "eca": (
        "Efficient channel attention",
        [
            ["mean", "over H × W"],
            ["norm", "over the batch"],
            ["convolution", "k channels"],
            ["gate", "2 σ"],
        ],
        "×",
    ),
    "cbam": (
        "The channel half of CBAM",
        [
            ["mean and max", "over H × W"],
            ["W_1, ReLU", "of each, C / 16"],
            ["norm, W_2", "of each, C"],
            ["sum", "of the two"],
            ["gate", "2 σ"],
        ],
        "×",
    ),
    "cam": (
        "Channel affinity",
        [
            ["X X^T", "(C, C)"],
            ["softmax", "max − X X^T"],
            ["mix channels", "weights · X"],
            ["γ", "starts at 0"],
        ],
        "+",
    ),
}
"""Of each: what it is called, the steps beside the bypass, and how the two are joined."""


def attention(title, steps, joint):
    """Steps in a row, with a bypass above them.

    Args:
        title: what the module is called.
        steps: lines of text of each box.
        joint: "+" or "×".
    """
    width, gap, first = 125, 25, 115
    end = first + len(steps) * (width + gap)
    drawing = Drawing(end + 165, 130, f"{title}, step by step")
    drawing.box(15, 60, 75, 50, ["X", "(C, H, W)"], GREY)
    drawing.line((90, 85), (first, 85), tip=True)
    for number, lines in enumerate(steps):
        left = first + number * (width + gap)
        drawing.box(left, 60, width, 50, lines, BLUE)
        drawing.line((left + width, 85), (left + width + gap, 85), tip=True)
    drawing.box(end, 65, 40, 40, [joint], ORANGE)
    drawing.line((52, 60), (52, 25), (end + 20, 25), (end + 20, 65), tip=True)
    drawing.box(end + 65, 60, 85, 50, ["output", "(C, H, W)"], GREY)
    drawing.line((end + 40, 85), (end + 65, 85), tip=True)
    return drawing


def drawings():
    """All figures: {path: text of the file}."""
    figures = {DOCS / "method.svg": str(method())}
    for name, (title, steps, joint) in ATTENTIONS.items():
        figures[DOCS / "attention" / f"{name}.svg"] = str(attention(title, steps, joint))
    return figures


def main():
    """Writes the figures into docs/."""
    for path, text in drawings().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
