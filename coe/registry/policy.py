"""Policy and budget: what the service does in doubt and in trouble, and what a plan must keep to.

Residency: local experts that need more memory together than the devices have take turns.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from coe.registry.base import Name, Positive, Probability, StrictModel


class ExplorationSpec(StrictModel):
    """Now and then another expert than the best, so that the log tells how good others are and a change can be judged
    before it is made. Off at rate 0: the log then tells of each expert only where it is chosen anyway."""

    rate: Probability = 0.0
    """Share of the routed requests that try another expert; never a pin, a follow-up that stays, or an unsure one."""
    max_quality_loss: Probability = 0.05
    """Expected quality that such a request may give up at most."""


class Policy(StrictModel):
    """What the service does when unsure or when an expert fails."""

    confidence_threshold: Probability | None = None
    """Below this confidence the conversation goes to the general expert; left out, as the router's training found."""
    sticky_margin: Annotated[float, Field(ge=0)] = 0.2
    """A follow-up stays with its expert unless another is better by more than this, in expected quality."""
    cost_weight: Probability = 0.0
    """Expected quality one gives up to use nothing rather than the dearest expert: 0 best, 1 cheapest."""
    cost_weight_limits: tuple[Probability, Probability] = (0.0, 1.0)
    """What a request's header x-coe-cost-weight may ask for."""
    max_quality_loss: Probability = 0.02
    """An overloaded expert's request goes to another that is expected to be worse by at most this."""
    exploration: ExplorationSpec = ExplorationSpec()
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """Times experts are asked for one request before giving up, the first included."""
    hedge: bool = False
    """Ask the next expert too when the first is slower than 95 % of its usual answers; the first to answer counts."""
    timeout: Positive = 600.0
    """Seconds for a whole request; a request's header x-coe-timeout may ask for less."""
    first_token_timeout: Positive = 120.0
    """Seconds until an expert's first piece of a stream."""
    response_timeout: Positive = 300.0
    """Seconds until an expert's whole answer where it is not streamed: nothing is seen of it before."""
    stream_idle_timeout: Positive = 60.0
    """Seconds between two pieces."""


class BudgetSpec(StrictModel):
    """What `coe plan` must keep to; `memory_gb` is also held against the local experts by `coe check`."""

    memory_gb: Positive | None = None
    """Of all hosted experts together."""
    mean_active_b: Positive | None = None
    """Active parameters a request, on average, in billions."""
    mean_cost: Positive | None = None
    """US dollars a thousand requests, on average."""
    mean_latency_ms: Positive | None = None
    max_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Largest share of the requests that one expert may get."""


class DeviceSpec(StrictModel):
    """Memory that experts take turns in: a GPU, several that hold one expert together, or a machine's RAM."""

    name: Name
    memory_gb: Positive
    """For experts alone: leave out what else runs there."""


class ResidencySpec(StrictModel):
    """How the local experts share the devices. Each needs memory_gb then."""

    devices: tuple[DeviceSpec, ...] = Field(min_length=1)
    sleep_memory_gb: Annotated[float, Field(ge=0)] = 0.0
    """RAM for vLLM experts asleep, divided evenly among the devices; what does not fit is stopped."""
    max_wait: Positive = 30.0
    """Seconds that requests for an expert that is not awake may wait so that others like them can join, which saves
    switches. What loading takes comes on top where many are asked for at once."""
    hold: Positive = 120.0
    """Seconds after which a request that still waits goes to the next expert that is awake, or ends with 503."""
