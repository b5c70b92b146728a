"""The memory of one training step, worked out from sizes alone.

Knows which tensors a step holds at its fullest moments. Must not know torch, options or files. All numbers
are bytes; tests hold them to what a counter finds in real steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from zimage_gui.model.sizes import TransformerConfig

_FP32 = 4
_OPENED_COPIES = 2
"""Of a quantised matrix while it is multiplied: the opened weight, and what it is made from on the way."""

NUMBER_BYTES = {"none": 0.0, "fp8": 1 + 2 / 64, "int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Of a weight in each `base_quant` for a model in 16 bits; none: as the model computes."""


@dataclass(frozen=True)
class Rows:
    """One batch: tokens of its pictures and captions, both padded."""

    image: int
    text: int

    @property
    def all(self) -> int:
        return self.image + self.text


@dataclass(frozen=True)
class Step:
    """What one update does. `numbers`: bytes of a number in the computation, of a trained number, its
    gradient and its optimizer state.

    recomputed: of the main blocks, the first so many keep their input alone; embedding: gradients reach the
    first half (embedders, refiners); rank: of the adapters on each main block (0: its own weights are
    trained); casts: weights are of another format than the computation; copies: fp32 copies of the largest
    matrix while it is updated.
    """

    config: TransformerConfig
    rows: Rows
    computing: int
    trained: int
    gradient: int
    state: float
    recomputed: int
    inputs_away: bool = False
    embedding: bool = False
    rank: int = 0
    in_backward: bool = False
    casts: bool = False
    copies: float = 0.0
    quantised: bool = False


@dataclass(frozen=True)
class Moment:
    """What a step holds beside weights and optimizer state at one moment."""

    activations: float
    gradients: float

    @property
    def all(self) -> float:
        return self.activations + self.gradients


@dataclass(frozen=True)
class BlockRow:
    """Bytes of one row of tokens in a block: its input; what is kept when products are; what is kept when
    everything is, as a recomputed block does for a moment; what its backward pass adds to either."""

    input: float
    kept: float
    whole: float
    working: float
    working_whole: float


def block_row(config: TransformerConfig, item: int, rank: int) -> BlockRow:
    """Kept are x, q, k, v, attention, its projection, their sum, w2's product (8 widths), w1's and w3's (2
    hidden widths), the adapters' inner products, and fp32 statistics of attention and norms. Everything else
    that a plain block keeps: two normed inputs, turned queries and keys, the gate's product."""
    dim, hidden, heads = config.dim, config.ffn_dim, config.n_heads
    statistics = _FP32 * (3 * heads + 4)
    kept = (8 * dim + 2 * hidden + 7 * rank) * item + statistics
    return BlockRow(
        input=dim * item,
        kept=kept,
        whole=kept + (4 * dim + hidden) * item,
        working=3 * hidden * item,
        working_whole=(2 * dim + 2 * hidden) * item,
    )


def block_numbers(config: TransformerConfig) -> int:
    """Numbers in the matrices of one block."""
    return 4 * config.dim**2 + 3 * config.dim * config.ffn_dim


def largest_matrix(config: TransformerConfig) -> int:
    return config.dim * config.ffn_dim


def state_bytes(step: Step) -> float:
    return step.trained * step.state


def fullest(step: Step) -> Moment:
    """The moment of an update at which most is held."""
    return max(_moments(step), key=lambda moment: moment.all)


def _moments(step: Step) -> list[Moment]:
    """The turn from forward to backward, the last recomputed block, the first block, the update: what is held
    changes evenly between these."""
    config, rows = step.config, step.rows
    row = block_row(config, step.computing, step.rank)
    recomputed = min(step.recomputed, config.n_layers)
    kept = config.n_layers - recomputed
    casts = block_numbers(config) * step.computing if step.casts else 0.0
    inputs = row.input * rows.all * (min(recomputed, 2) if step.inputs_away else recomputed)
    opened = _OPENED_COPIES * largest_matrix(config) * step.computing if step.quantised else 0.0
    half = _first_half(step, row, casts) + opened
    products, anew = row.kept * rows.all + casts, row.whole * rows.all + casts
    moments: list[Moment] = []
    if kept:
        turn = half + inputs + kept * products
        moments += _block_moments(step, turn, row.working * rows.all, 1)
    if kept and not recomputed:
        moments += _block_moments(step, half + products, row.working * rows.all, config.n_layers)
    if recomputed:
        others, working = inputs - row.input * rows.all, row.working_whole * rows.all
        moments += _block_moments(step, half + max(0.0, others) + anew, working, kept + 1)
        moments += _block_moments(step, half + anew, working, config.n_layers)
    if step.embedding:
        last, working = (anew, row.working_whole) if recomputed else (products, row.working)
        trained = config.n_layers + 2 * config.n_refiner_layers
        moments += _block_moments(step, opened + last, working * rows.all, trained)
    if not step.in_backward:
        largest = max(largest_matrix(config), 4 * config.dim * config.time_dim)
        moments.append(Moment(step.copies * _FP32 * largest, step.trained * step.gradient))
    return moments


def _block_moments(step: Step, held: float, working: float, blocks: int) -> list[Moment]:
    """Within the backward pass of a block, the last of so many: those before it have their gradients, and
    while it holds most, it has that of its first matrix."""
    config = step.config
    if not step.in_backward:
        done = (blocks - 1) * block_numbers(config) + largest_matrix(config)
        numbers = step.trained * blocks / config.n_layers if step.rank else done
        return [Moment(held + working, min(numbers, step.trained) * step.gradient)]
    gradient = largest_matrix(config) * step.gradient
    updating = step.config.dim * step.computing * step.rows.all
    return [
        Moment(held + working, gradient),
        Moment(held + updating, gradient + largest_matrix(config) * _FP32 * step.copies),
    ]


def _first_half(step: Step, row: BlockRow, casts: float) -> float:
    """What the refiners keep until their turn in the backward pass, if they have one."""
    if not step.embedding:
        return 0.0
    refiners = step.config.n_refiner_layers
    if step.recomputed:
        return refiners * row.input * step.rows.all
    return refiners * (row.kept * step.rows.all + 2 * casts)


def forward_bytes(config: TransformerConfig, rows: Rows, item: int) -> float:
    """The most that a pass without gradients holds: three rows of the width and the gate's three."""
    return (4 * config.dim + 3 * config.ffn_dim) * item * rows.all
