"""AdapterSync: adapters follow the declaration while their server runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from coe.errors import ConfigError, FleetError
from coe.fleet import adapter_sync
from coe.fleet.adapter_sync import AdapterSync
from coe.fleet.fleet import Fleet
from coe.registry import ExpertSpec
from tests.fleet.adapters import adapter
from tests.fleet.fake_fleet import QUICK, Fakes, send_chat

pytestmark = pytest.mark.anyio
BASE = ExpertSpec(name="base", model="org/model", runtime="vllm")


@dataclass
class Declared:
    """The declared experts, and those that were published to gateways."""

    folder: Path
    fakes: Fakes
    experts: tuple[ExpertSpec, ...] | None = (BASE,)
    published: tuple[str, ...] = ()

    def declare(self, *names: str, valid: bool = True) -> None:
        """The base and adapters of these names."""
        more = [BASE.model_copy(update={"name": name, "adapter": str(adapter(self.folder / name))}) for name in names]
        self.experts = (BASE, *more) if valid else None
        draft = self.folder / "draft"
        draft.write_text("x")
        draft.replace(self.folder / "experts.yaml")

    def read(self) -> tuple[ExpertSpec, ...]:
        if self.experts is None:
            raise ConfigError("experts.yaml:1: not YAML")
        return self.experts

    def tell(self, experts: Sequence[ExpertSpec]) -> None:
        self.published = tuple(expert.name for expert in experts)
        self.fakes.report(f"published {', '.join(self.published)}")

    @property
    def requests(self) -> list[str]:
        """The requests to load and unload that the server received."""
        return [line for line in (self.folder / "logs" / "fake.log").read_text().splitlines() if "lora" in line]


@asynccontextmanager
async def following(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch, *, lora: bool = True
) -> AsyncIterator[tuple[Declared, Fleet]]:
    for pause in ("POLL_INTERVAL", "RETRY_INTERVAL", "UNLOAD_DELAY"):
        monkeypatch.setattr(adapter_sync, pause, 0.02)
    declared, spec = Declared(tmp_path, fakes), fakes.spec()
    spec = replace(spec, loads_adapters=lora)
    declared.declare()
    async with Fleet([spec], report=fakes.report, timeouts=QUICK) as fleet:
        follower = AdapterSync(
            fleet, config=tmp_path / "experts.yaml", read=declared.read, publish=declared.tell, report=fakes.report
        )
        task = asyncio.create_task(follower.watch({BASE.server_key: spec.key}, [BASE]))
        try:
            yield declared, fleet
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_an_adapter_is_loaded_before_it_is_published_and_unpublished_before_it_is_unloaded(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with following(tmp_path, fakes, monkeypatch) as (declared, _):
        declared.declare("poet")
        await fakes.wait_for_line("published base, poet")
        assert declared.requests == ["/v1/load_lora_adapter poet"]
        declared.declare()
        await fakes.wait_for_line("has unloaded the adapter 'poet'")
        events = [line for line in fakes.lines if "poet" in line or line == "published base"]
        assert [line.split()[0] for line in events] == ["server", "published", "published", "server"]
        assert declared.requests[1:] == ["/v1/unload_lora_adapter poet"]


async def test_a_restarted_server_loads_the_adapters_added_meanwhile(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with following(tmp_path, fakes, monkeypatch) as (declared, fleet):
        declared.declare("poet")
        await fakes.wait_for_line("published base, poet")
        server = fleet._servers[0]
        assert server.spec.command[-2:] == ("--lora-modules", f"poet={tmp_path / 'poet'}")
        await send_chat(server.spec, "/die")
        await fakes.wait_for_line("is ready", times=2)


async def test_a_failed_load_is_reported_once_not_published_and_not_repeated_at_a_restart(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with following(tmp_path, fakes, monkeypatch) as (declared, fleet):
        declared.declare("broken")
        await fakes.wait_for_line("answered 500: torn weights")
        while len(declared.requests) < 3:
            await asyncio.sleep(0.01)
        assert sum("torn weights" in line for line in fakes.lines) == 1
        assert declared.published == ()
        assert fleet._servers[0].spec.adapters == {}
        declared.declare("poet")
        await fakes.wait_for_line("published base, poet")


async def test_an_invalid_declaration_changes_nothing(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with following(tmp_path, fakes, monkeypatch) as (declared, _):
        declared.declare("poet", valid=False)
        await asyncio.sleep(0.1)
        declared.declare("poet")
        await fakes.wait_for_line("published base, poet")
        assert len(fakes.lines) == 3


async def test_a_server_without_lora_reports_the_option_it_needs(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with following(tmp_path, fakes, monkeypatch, lora=False) as (declared, fleet):
        declared.declare("poet")
        await fakes.wait_for_line(
            "cannot load the adapter 'poet': it was started without LoRA; start again, or declare"
        )
        with pytest.raises(FleetError, match="started without LoRA"):
            await fleet.server("fake").load_adapters({"poet": tmp_path})
        assert declared.requests == []
