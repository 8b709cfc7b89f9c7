"""Defines the recipe: one dataclass per section, with types, defaults, units and effects.

The dataclasses are authoritative and YAML only overrides them. A node with a `kind` is replaced by the dataclass that
`registry.py` lists for that kind; the kinds are in `kinds/`. Nothing here imports torch.
"""

from dataclasses import dataclass, field
from typing import Literal

from moe_train.config.bounds import at_least, positive, positive_or_null
from moe_train.config.fields import NumberOrNumbers
from moe_train.config.kinds.data import BPEConfig, CorpusConfig, FilesCorpusConfig, TokenizerConfig
from moe_train.config.kinds.depth import DepthConfig, FullDepthConfig
from moe_train.config.kinds.dispatch import AutoDispatchConfig, DispatchConfig
from moe_train.config.kinds.engine import EngineConfig, NativeEngineConfig
from moe_train.config.kinds.guard.guard import GuardConfig
from moe_train.config.kinds.objective import LanguageConfig, ObjectiveConfig
from moe_train.config.kinds.optim import AdamWConfig, OptimConfig
from moe_train.config.kinds.router.router import RouterConfig
from moe_train.config.kinds.router.switch import SwitchRouterConfig
from moe_train.config.stability import StabilityConfig
from moe_train.config.wandb import WandbConfig

Detail = Literal["off", "brief", "full"]


@dataclass
class ModelConfig:
    """Configures a transformer with pre-normalisation (RMSNorm, no biases)."""

    # decoder: causal; encoder: every position sees all; encoder_decoder: one of each, joined by cross-attention
    architecture: Literal["decoder", "encoder", "encoder_decoder"] = "decoder"
    num_layers: int = at_least(1, 4)  # of the decoder; without one, of the encoder
    # encoder_decoder: of the encoder; null: as many as the decoder
    num_encoder_layers: int | None = positive_or_null(None)
    d_model: int = at_least(1, 256)  # width of the residual stream
    num_heads: int = at_least(1, 4)
    head_width: int | None = positive_or_null(None)  # of queries, keys and values; null: d_model / num_heads
    d_ff: int | None = positive_or_null(None)  # hidden width of a dense feed-forward block; null: 4 * d_model
    activation: Literal["relu", "gelu", "swiglu", "geglu"] = "relu"
    # relative: T5's bucketed bias; transformer_xl: scores of sinusoids of the distance, in each layer its own
    positions: Literal["rotary", "learned", "relative", "transformer_xl"] = "rotary"
    dropout: float = 0.0  # on embeddings and on every block's output, training only
    tied_embeddings: bool = True  # output head = token embedding
    init_scale: float = 0.1  # s of Switch (2101.03961) sec. 2.4: std = sqrt(s / fan_in), truncated at 2 std
    depth: DepthConfig = field(default_factory=FullDepthConfig)


@dataclass
class MoEConfig:
    """Configures which layers are Mixture-of-Experts layers, and how tokens reach the experts."""

    # Layers are counted from 0, as in metrics.jsonl and in parameters' names.
    every: int | None = (
        2  # every n-th layer of a stack is an MoE layer; 0: a dense model; null: `layers` says
    )
    first: int | None = None  # the first MoE layer of a stack, after which `every` counts; null: every - 1
    dense_first: int = 0  # layers at the bottom of a stack that are dense, whatever `every` says
    layers: list[int] | None = None  # the MoE layers one by one; a decoder's layers follow its encoder's
    stacks: Literal["both", "encoder", "decoder"] = "both"  # encoder_decoder: which stacks have MoE layers
    num_experts: NumberOrNumbers = 8  # of every MoE layer; a list: of each of them, the lowest first
    d_ff: int | None = positive_or_null(None)  # hidden width of one expert; null: the dense width
    activation: Literal["relu", "gelu", "swiglu", "geglu"] | None = None  # of experts; null: the model's
    expert_dropout: float = (
        0.0  # on the hidden units of routed experts, in training; Switch fine-tunes with 0.4
    )
    scale_expert_gradients: bool = False  # by 1 / sqrt(num_experts), as in Artetxe et al. (2112.10684)
    # experts beside the routed ones that every token meets, in every MoE layer
    shared_experts: int = at_least(0, 0)
    capacity_factor: float | None = positive_or_null(1.25)  # training; null: dropless
    eval_capacity_factor: float | None = positive_or_null(2.0)  # validation; null: dropless
    capacity_convention: Literal["mesh", "deepspeed", "vmoe"] = "mesh"  # see moe/capacity.py
    min_capacity: int = at_least(0, 4)  # slots an expert has at least in every routing group
    # sequences in one routing group, in which capacity is counted; see moe.router.balance_over too
    group_sequences: int = at_least(1, 1)
    router: RouterConfig = field(default_factory=SwitchRouterConfig)
    dispatch: DispatchConfig = field(default_factory=AutoDispatchConfig)


@dataclass
class DataConfig:
    """Configures text, tokens and batches."""

    corpus: CorpusConfig = field(default_factory=FilesCorpusConfig)
    tokenizer: TokenizerConfig = field(default_factory=BPEConfig)
    sequence_length: int = at_least(1, 128)  # tokens
    global_batch: int = at_least(1, 32)  # sequences per update, over all workers
    # sequences per worker and forward pass; null: no accumulation
    micro_batch: int | None = positive_or_null(None)
    validation_fraction: float = 0.05  # share of the files kept for validation, never trained on
    validation_sequences: int = at_least(1, 128)  # maximum number, the same ones each time


@dataclass
class DecodingConfig:
    """Configures how a translation run translates, in validation and by `moe-train translate`."""

    beam_size: int = at_least(1, 4)  # hypotheses kept for every sentence; 1: greedy
    # alpha of GNMT (1609.08144) eq. 14; 0: none, more favours longer translations
    length_penalty: float = at_least(0, 0.6)
    # validation pairs that are translated and scored at each validation; 0: none
    sentences: int = at_least(0, 64)


@dataclass
class ParallelConfig:
    """Configures the degrees of parallelism.

    workers = data * tensor, and expert * expert_tensor divides them: experts may be spread over tensor ranks too.
    """

    data: int | None = positive_or_null(None)  # shares of the global batch; null: workers / tensor
    tensor: int = at_least(1, 1)  # workers that read one share and hold parts of each layer
    expert: int = at_least(1, 1)  # shares of a layer's experts; divides moe.num_experts
    expert_tensor: int = at_least(1, 1)  # parts that each expert is cut into; divides moe.d_ff
    sequence: bool = False  # between the blocks, tensor ranks hold different positions
    # neighbours on the data axis that shard the weights, of which other groups have copies; null: all of the axis
    shard: int | None = positive_or_null(None)
    # steps between comparisons of what several workers hold copies of; 0: never, and a save records differences
    check_every: int = at_least(0, 100)

    @property
    def exchange(self) -> int:
        """Returns the number of workers that hold one set of experts together."""
        return self.expert * self.expert_tensor


@dataclass
class CheckpointConfig:
    """Configures when checkpoints are written and which ones are kept. The last step is always saved."""

    every: int = at_least(0, 100)  # steps; 0: only at the end and when asked to stop
    keep_last: int = at_least(0, 3)  # newest checkpoints kept; 0: all
    keep_every: int | None = positive_or_null(None)  # and every checkpoint whose step is a multiple of this
    asynchronous: bool = True  # write in the background while training continues


@dataclass
class MonitorConfig:
    """Configures the sinks of a run's rows. metrics.jsonl is always written."""

    # off: loads and losses alone, no alarms; brief: experts' gradients in rows of each tenth step; full: in all rows
    detail: Detail = "brief"
    # steps between comparisons of the experts' weights, in the next row; 0: never
    similarity_every: int = at_least(0, 100)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    callbacks: list[str] = field(default_factory=list)  # names of those that installed packages offer


@dataclass
class JobConfig:
    """Configures the processes of a run."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    # CPU threads per worker; null: OMP_NUM_THREADS, or the cores shared out
    threads: int | None = positive_or_null(None)
    # a collective, or a start of workers, that takes longer than this fails
    timeout_s: float = positive(300.0)
    hang_s: float = 60.0  # after this long without a step the run hangs: the rank is named, the attempt ends
    preflight: Literal["auto", "always", "never"] = (
        "auto"  # workers check their nodes and the network first; auto: only on several nodes
    )


@dataclass
class Recipe:
    """Describes one training run."""

    name: str = "run"
    paper: str = ""  # what the recipe reproduces
    seed: int = at_least(0, 0)
    steps: int = at_least(1, 1000)  # updates
    log_every: int = at_least(1, 10)  # steps between rows of metrics.jsonl
    # steps; validation also runs at step 0 and at the end; 0: only then
    validate_every: int = at_least(0, 100)
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: matrix products in bf16, weights and updates in fp32
    model: ModelConfig = field(default_factory=ModelConfig)
    moe: MoEConfig = field(default_factory=MoEConfig)
    objective: ObjectiveConfig = field(default_factory=LanguageConfig)
    data: DataConfig = field(default_factory=DataConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    optim: OptimConfig = field(default_factory=AdamWConfig)
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    guards: list[GuardConfig] = field(default_factory=list)  # judge every update, beside those of `stability`
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    engine: EngineConfig = field(default_factory=NativeEngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    job: JobConfig = field(default_factory=JobConfig)
