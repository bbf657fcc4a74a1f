"""The sections `policy`, `budget` and `residency` of experts.yaml.

`policy` sets how experts are selected and called, `budget` the constraints of a plan, and `residency` how local experts
share devices that cannot hold all of them at once.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from coe.registry.base import Name, Positive, Probability, StrictModel


class ExplorationSpec(StrictModel):
    """Random selection of other experts for a share of requests. With it the routing log measures all experts, so that
    a change of the plan can be evaluated before it is made. Off by default (rate 0)."""

    rate: Probability = 0.0
    """Share of routed requests that explore. Pinned, sticky and uncertain requests never explore."""
    max_quality_loss: Probability = 0.05
    """Largest loss of expected quality that exploration may cost a request."""


class Policy(StrictModel):
    """How an expert is selected, and what happens when it is overloaded, slow or fails."""

    confidence_threshold: Probability | None = None
    """Below this confidence the general expert answers. Default: the threshold that training found."""
    sticky_margin: Annotated[float, Field(ge=0)] = 0.2
    """A follow-up keeps its conversation's expert unless another one is better by more than this, in expected quality
    minus price."""
    cost_weight: Probability = 0.0
    """Weight of cost against quality: 0 best quality, 1 cheapest. It is the expected quality to give up for an expert
    that costs nothing instead of the most expensive one."""
    cost_weight_limits: tuple[Probability, Probability] = (0.0, 1.0)
    """Lowest and highest cost_weight that a request may set with the header x-coe-cost-weight."""
    max_quality_loss: Probability = 0.02
    """If an expert is overloaded, its request goes to another expert that is worse by at most this, in expected quality
    minus price."""
    exploration: ExplorationSpec = ExplorationSpec()
    """Random selection of other experts for a share of requests."""
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """Largest number of calls to experts for one request, the first one included."""
    hedge: bool = False
    """If an expert's stream starts later than 95 % of its recent ones, call the next expert too. The first to answer
    wins."""
    timeout: Positive = 600.0
    """Seconds for a whole request. A request may set a smaller value with the header x-coe-timeout."""
    first_token_timeout: Positive = 120.0
    """Seconds until the first token of a stream."""
    response_timeout: Positive = 300.0
    """Seconds until a complete response that is not streamed."""
    stream_idle_timeout: Positive = 60.0
    """Longest pause within a stream, in seconds."""


class BudgetSpec(StrictModel):
    """Constraints for `coe plan`. `coe check` also verifies `memory_gb` against the local experts."""

    memory_gb: Positive | None = None
    """Largest memory of all hosted experts together, in GB."""
    mean_active_b: Positive | None = None
    """Largest mean number of active parameters per request, in billions."""
    mean_cost: Positive | None = None
    """Largest mean cost in US dollars per thousand requests."""
    mean_latency_ms: Positive | None = None
    """Largest mean latency per request in milliseconds, from each expert's latency_ms."""
    max_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Largest share of requests for one expert."""


class DeviceSpec(StrictModel):
    """Memory that local experts share: one GPU, several GPUs that hold one expert together, or a machine's RAM."""

    name: Name
    """Name of the device, for `experts.device`."""
    memory_gb: Positive
    """Memory for experts in GB, without what other programs use."""


class ResidencySpec(StrictModel):
    """Local experts that share devices and are woken on demand. Each of them needs memory_gb."""

    devices: tuple[DeviceSpec, ...] = Field(min_length=1)
    """Devices that the experts share."""
    sleep_memory_gb: Annotated[float, Field(ge=0)] = 0.0
    """RAM in GB for sleeping vLLM experts, divided evenly among the devices. Experts that do not fit are stopped."""
    max_wait: Positive = 30.0
    """Longest wait in seconds of a request for a sleeping expert. Requests are collected meanwhile, which saves
    switches. The time for loading is added if several experts have requests."""
    hold: Positive = 120.0
    """Seconds after which a request that still waits goes to the next expert that is awake, or fails with 503."""
