"""Applies torch.compile: in training, parts of a model run as code that is generated for their shapes.

`COMPILED_PARTS` (config/kinds/engine.py, which `moe-train show` reads without torch) says which parts `engine.compile`
names; here is what they are. Routers and experts are not among them: their rows change with every step, and a tie that
falls the other way is another routing. Random draws stay outside too, and are handed in.

A module's `forward` is replaced in place. So parameters keep their names, and checkpoints move between runs with and
without; hooks stay around the generated code, and recomputation, tensor parallelism and FSDP2 find what they know.
Shapes are constants of the code: a step runs the same code whatever ran before it, also after a resume. Validation and
translation, whose shapes vary, run what the code was generated from.
"""

import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from moe_train.config.kinds.engine import COMPILED_PARTS, OwnEngineConfig
from moe_train.data.batch import Batch
from moe_train.model.attention import Attention
from moe_train.model.feedforward import FeedForward
from moe_train.model.logits import Logits
from moe_train.model.model import Model
from moe_train.model.stack import Residual
from moe_train.objectives.objective import TrainingLoss
from moe_train.parallel.mesh import Mesh

log = logging.getLogger(__name__)

MODULES: Mapping[str, type[nn.Module]] = {
    "attention": Attention,
    "feed-forward blocks": FeedForward,
    "norms": nn.RMSNorm,
    "residuals": Residual,
}
"""The parts that are modules; the only other one is the losses."""
OF_ROWS = ("feed-forward blocks", "norms", "residuals")
"""Those that see the rows of a block, and not whole sequences."""
BACKEND = "inductor"
MOST_VARIANTS = 64
"""As many pieces of code may be made of one function: for layers that differ, with gradient and without."""

Losses = Callable[[Sequence[Logits], Batch], TrainingLoss]


def apply_compile(model: Model, mesh: Mesh, engine: OwnEngineConfig, *, rows_vary: bool = False) -> None:
    """Has the parts that `engine.compile` names compiled when they first run. Collective.

    `rows_vary` says that the number of rows of a block depends on the step.
    """
    names, without = COMPILED_PARTS[engine.compile], dict(engine.not_compiled(mesh.tensor.size))
    if rows_vary:
        without |= dict.fromkeys(OF_ROWS, "the number of rows of a block depends on the step")
    if names and (lack := _missing(mesh)):
        Part(", ".join(names), mesh.world.is_main).say(lack)
        return
    for name in names:
        part = Part(name, mesh.world.is_main)
        if name in without:
            part.say(without[name])
        elif name in MODULES:
            for module in model.modules():
                if isinstance(module, MODULES[name]):
                    module.forward = Compiled(module.forward, part, module)


def compiled_losses(losses: Losses, mesh: Mesh, engine: OwnEngineConfig) -> Losses:
    """Returns an objective's losses, compiled if `engine.compile` names them and they can be. Collective."""
    is_named = "losses" in COMPILED_PARTS[engine.compile]
    if not is_named or "losses" in engine.not_compiled(mesh.tensor.size) or _missing(mesh):
        return losses  # `apply_compile` has said why
    part = Part("losses", mesh.world.is_main)
    compiled = Compiled(losses, part)

    def of_tensors(passes: Sequence[Logits], batch: Batch) -> TrainingLoss:
        """Calls the losses with the batch's number as a tensor: as one it would be a constant, and others come."""
        if (number := batch.targets_per_sequence) is not None:
            as_tensor: Any = torch.tensor(number, dtype=torch.float64)
            batch = replace(batch, targets_per_sequence=as_tensor)
        loss: TrainingLoss = compiled(passes, batch)
        return loss

    return of_tensors


@dataclass
class Part:
    """Is one of the parts that `engine.compile` names, or several."""

    name: str
    is_main: bool
    has_spoken: bool = False

    def say(self, reason: str) -> None:
        """Says once, on rank 0, why the part is not compiled."""
        if self.is_main and not self.has_spoken:
            log.warning("engine.compile: without %s: %s", self.name, reason)
        self.has_spoken = True


class Compiled:
    """Calls generated code in training; otherwise, and if it cannot be generated, what it would be generated from."""

    def __init__(self, plain: Callable[..., Any], part: Part, module: nn.Module | None = None):
        self.plain, self.part, self.module = plain, part, module
        self.code: Callable[..., Any] | None = torch.compile(  # type: ignore[call-overload]
            plain, fullgraph=True, dynamic=False, backend=BACKEND, recompile_limit=MOST_VARIANTS
        )

    def __call__(self, *arguments: Any) -> Any:
        if self.code is None or (self.module is not None and not self.module.training):
            return self.plain(*arguments)
        try:
            return self.code(*arguments)
        except _compile_errors() as error:  # before any of it has run
            self.part.say(str(error).strip().partition("\n")[0])
            self.code = None
            return self.plain(*arguments)


def _missing(mesh: Mesh) -> str | None:
    """Returns what some worker lacks to generate code; then none does. Collective."""
    if BACKEND != "inductor":
        return None
    lacking: list[str | None] = mesh.world.gather(_lacking(mesh.world.device))
    return next((lack for lack in lacking if lack), None)


def _lacking(device: torch.device) -> str | None:
    """Returns what this worker lacks. Imports the compiler, which takes seconds."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    host = socket.gethostname()
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return f"no C++ compiler was found on {host}; install g++, or name one in CXX"
    if device.type == "cuda" and not has_triton():
        return f"triton was not found on {host}; install it"
    return None


def _compile_errors() -> tuple[type[Exception], ...]:
    """Returns what compiling may raise."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return TorchDynamoException, FailOnRecompileLimitHit, CppCompileError, InvalidCxxCompiler
