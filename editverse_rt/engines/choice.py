"""Which plans may run here, with which profile, and whether they follow a caller's options.

Nothing here needs a GPU: what does is in `backends/trt_runner.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from editverse_rt.bundle.manifest import Bundle
from editverse_rt.engines.manifest import (
    BUILD_AGAIN,
    ENGINES_FOLDER,
    EngineSet,
    PlanSpec,
    find_engines,
    source_digest,
)
from editverse_rt.engines.shapes import Shape
from editverse_rt.engines.stamps import is_verified
from editverse_rt.errors import BackendError

__all__ = [
    "build_command",
    "choose_plans",
    "choose_profile",
    "choose_weight_budget",
    "is_host_graph",
    "refuse_options",
]


def is_host_graph(name: str) -> bool:
    """Whether every backend runs a graph on the CPU: it needs 64-bit numbers, and does little.

    TensorRT does not have 64-bit shifts, and ONNX Runtime's CUDA provider leaves them to the CPU node by node.
    """
    return name in ("noise", "add_noise", "keep_known") or name.startswith("schedule_")


def choose_plans(
    bundle: Bundle, graphs: tuple[str, ...], backend: str, version: str, capability: str, gpu: str
) -> tuple[EngineSet, dict[str, PlanSpec]]:
    """The plans of all graphs for this GPU, from the first folder that has them, verified ones first.

    Raises BackendError that says why none may run here and which command builds one that may: none built,
    built for another GPU, by another version of the backend, or from another state of the bundle.
    """
    command = build_command(bundle, backend, capability)
    reasons: list[str] = []
    fitting: list[tuple[EngineSet, dict[str, PlanSpec]]] = []
    for engines in find_engines(bundle):
        if engines.backend != backend:
            continue
        where = "/".join((ENGINES_FOLDER, *engines.folder.parts[-2:]))
        if capability not in engines.compute_capabilities or engines.gpu not in ("", gpu):
            built_for = engines.gpu or ", ".join(engines.compute_capabilities)
            reasons.append(f"{where} is for {built_for}, this GPU is {gpu} ({capability})")
        elif engines.backend_version != version:
            reasons.append(f"{where} is of {backend} {engines.backend_version}, here is {version}")
        else:
            # If a graph has plans in several precisions, the one that was built last is taken; it is last in the list.
            chosen = {plan.graph: plan for plan in engines.plans if plan.graph in graphs}
            missing = [g for g in graphs if g not in chosen]
            stale = [g for g in graphs if g in chosen and chosen[g].source_sha256 != source_digest(bundle, g)]
            if stale:
                reasons.append(f"{where} was built from another state of {', '.join(stale)}")
            elif missing:
                reasons.append(f"{where} lacks {', '.join(missing)}")
            else:
                fitting.append((engines, chosen))
    if fitting:
        return min(fitting, key=lambda found: not is_verified(found[0], gpu))
    why = "; ".join(reasons) or f'bundle "{bundle.spec.name}" has no plan of {backend}'
    raise BackendError(f"{why}", hint=f"build it with: {command}", code="backend.engine_missing")


def build_command(bundle: Bundle, backend: str, capability: str) -> str:
    """The command that builds a bundle's plans for a GPU."""
    target = f"sm_{capability.replace('.', '')}"
    return f"python -m export.build_engine {bundle.root} --backend {backend} --target {target}"


def choose_profile(plan: PlanSpec, shapes: Mapping[str, Shape]) -> int:
    """The number of the smallest profile that holds the shapes of these inputs.

    Raises BackendError with what the profiles reach, and the option that reaches further; and for a plan
    without profiles, or with one of an input that is not given.
    """
    if not plan.profiles:
        raise BackendError(
            f'the plan of graph "{plan.graph}" has no profile',
            hint=BUILD_AGAIN,
            code="backend.engine_damaged",
        )
    for profile in plan.profiles:
        for name in profile.shapes:
            if name not in shapes:
                raise BackendError(
                    f'the plan of graph "{plan.graph}" has a profile of "{name}", which the graph '
                    "does not take",
                    hint=BUILD_AGAIN,
                    code="backend.engine_damaged",
                )
    order = sorted(range(len(plan.profiles)), key=lambda index: plan.profiles[index].num_largest)
    for index in order:
        misfits = plan.profiles[index].find_misfits(shapes)
        if not misfits:
            return index
    largest = plan.profiles[order[-1]].shapes
    found = ", ".join(f"{name} {list(shapes[name])}" for name in misfits)
    reach = ", ".join(f"{name} {list(largest[name][0])} to {list(largest[name][2])}" for name in misfits)
    raise BackendError(
        f'graph "{plan.graph}" was asked for {found}, its plan reaches {reach}',
        hint="ask for less, or build the engines again for larger shapes",
        code="backend.engine_range",
    )


def refuse_options(plans: Mapping[str, PlanSpec], *, has_plugin: bool, has_budget: bool) -> str | None:
    """Why plans and a caller's options do not go together, and what to do; None if they do."""
    with_plugin = [plan.graph for plan in plans.values() if plan.facts.get("plugin")]
    if with_plugin and not has_plugin:
        return (
            f"its plan of {', '.join(with_plugin)} was built with the RopeAttention plugin; give its "
            "library as plugin (build/plugin/libeditverse_plugin.so), or build the engines again without it"
        )
    if has_plugin and not with_plugin:
        return "none of its plans was built with a plugin; leave plugin out"
    if has_budget and not any(plan.facts.get("weight_streaming") for plan in plans.values()):
        return "its plans hold all weights on the GPU; build the engines again with weight streaming"
    return None


def choose_weight_budget(asked_bytes: int | None, streamable_bytes: int, automatic_bytes: int) -> int:
    """How much of a plan's weights lies on the GPU: what the caller asked for, or TensorRT's own choice."""
    return min(automatic_bytes if asked_bytes is None else asked_bytes, streamable_bytes)
