"""Adapters as files: what does not fit, is damaged or leads astray is refused by name before an engine sees it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from adapter_kit import RANK, Tensors, adapter_folder, base_folder, tensors
from collegium.experts.adapter import (
    AdapterError,
    adapter_bytes,
    check_fit,
    locate_adapter,
    read_adapter,
    resolved,
    shipped_adapters,
)
from collegium.experts.adapter_staging import stage, sweep
from collegium.experts.backends import AdapterBackend, AdapterSlots
from collegium.experts.card import Card, CardError, parse_card
from collegium.experts.plan import Machine, plan_memory
from collegium.experts.pool import parse_pool
from collegium.experts.preflight import check_adapter

SLOTS = AdapterSlots(max=2, max_rank=8)
Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


def backend(adapter: object, **more: object) -> AdapterBackend:
    return AdapterBackend.model_validate({"kind": "adapter", "engine": "base", "adapter": str(adapter), **more})


def engine_card(model: Path, **more: object) -> Card:
    slots = {"max": 2, "max_rank": 8}
    engine = {"kind": "engine", "model": str(model), "accelerator": "cpu", "memory_gb": 1, "adapters": slots, **more}
    return parse_card({"name": "base", "generalist": True, "backend": engine})


def adapter_card(name: str, adapter: object, **more: object) -> Card:
    return parse_card({"name": name, "backend": backend(adapter, **more).model_dump()})


def test_an_adapter_of_the_base_fits(tmp_path: Path) -> None:
    found = read_adapter(adapter_folder(tmp_path / "a"))
    assert found.rank == RANK and len(found.pairs) == 4
    check_fit(found, base_folder(tmp_path / "base"), SLOTS)


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda made: made.pop(name)


def put(name: str, shape: tuple[int, ...]) -> Callable[[Tensors], object]:
    return lambda made: made.update({name: np.zeros(shape, np.float32)})


def output_layer(made: Tensors) -> None:
    for half, shape in (("A", (RANK, 8)), ("B", (100, RANK))):
        put(f"base_model.model.lm_head.lora_{half}.weight", shape)(made)


def whole_module(made: Tensors) -> None:
    made.pop(Q0 + "A.weight")
    made.pop(Q0 + "B.weight")


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (drop(Q0 + "B.weight"), {}, Q0 + "B.weight is missing"),
        (whole_module, {}, Q0 + "A.weight is missing"),
        (put(Q0 + "A.weight", (RANK, 9)), {}, Q0 + "A.weight is 9 wide, the base's module 8"),
        (put(Q0 + "B.weight", (7, RANK)), {}, Q0 + "B.weight is 7 wide, the base's module 8"),
        (put(Q0 + "A.weight", (3, 8)), {}, Q0 + "A.weight has rank 3"),
        (put(Q0.replace(".0.", ".5.") + "A.weight", (2, 8)), {}, r"layers\.5\..*lora_B.weight is missing"),
        (put("base_model.model.lm_head.weight", (4, 8)), {}, "lm_head.weight is no half of a LoRA pair"),
        (output_layer, {}, r"no room for the tensor base_model\.model\.lm_head\.lora_A\.weight; it adapts q_proj"),
        (lambda made: None, {"modules_to_save": ["lm_head"]}, "modules_to_save"),
        (lambda made: None, {"use_dora": True}, "use_dora"),
        (lambda made: None, {"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        (lambda made: None, {"bias": "all"}, "bias"),
        (lambda made: None, {"peft_type": "IA3"}, "peft_type must be LORA"),
        (lambda made: made.clear(), {}, "holds no tensors"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_tensors_name(
    tmp_path: Path, change: Callable[[Tensors], object], settings: dict[str, object], said: str
) -> None:
    folder = adapter_folder(tmp_path / "a", change, settings)
    with pytest.raises(AdapterError, match=said):
        check_fit(read_adapter(folder), base_folder(tmp_path / "base"), SLOTS)


def test_a_layer_that_the_base_does_not_have(tmp_path: Path) -> None:
    def deeper(made: Tensors) -> None:
        for half, shape in (("A", (2, 8)), ("B", (8, 2))):
            put(f"base_model.model.model.layers.7.self_attn.q_proj.lora_{half}.weight", shape)(made)

    found = read_adapter(adapter_folder(tmp_path / "a", deeper))
    with pytest.raises(AdapterError, match=r"layers\.7\.self_attn\.q_proj\.lora_A\.weight; it is of another base"):
        check_fit(found, base_folder(tmp_path / "base"), SLOTS)


def test_layers_that_are_not_to_be_transformed_are_not_missed(tmp_path: Path) -> None:
    def last_only(made: Tensors) -> None:
        for name in [name for name in made if ".layers.0." in name]:
            made.pop(name)

    found = read_adapter(adapter_folder(tmp_path / "a", last_only, {"layers_to_transform": [1]}))
    check_fit(found, base_folder(tmp_path / "base"), SLOTS)


def test_too_high_a_rank(tmp_path: Path) -> None:
    found = read_adapter(adapter_folder(tmp_path / "a", rank=16))
    with pytest.raises(AdapterError, match="rank 16, its engine takes up to 8"):
        check_fit(found, base_folder(tmp_path / "base"), SLOTS)


def test_a_cut_file_a_changed_file_and_no_file(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    assert read_adapter(folder, backend(folder, sha256=right, rank=RANK)).sha256 == right
    with pytest.raises(AdapterError, match="rank 4"):
        read_adapter(folder, backend(folder, rank=4))
    with pytest.raises(AdapterError, match="checksum"):
        read_adapter(folder, backend(folder, sha256="0" * 64))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(AdapterError, match="no whole safetensors file"):
        read_adapter(folder)
    file.unlink()
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors is missing"):
        read_adapter(folder)
    with pytest.raises(AdapterError, match=r"adapter_config\.json cannot be read"):
        read_adapter(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["package:../../secrets", "package:nosuch", "somewhere", "./here"])
def test_names_that_lead_nowhere_or_astray(name: str) -> None:
    with pytest.raises(AdapterError):
        locate_adapter(backend(name))


def test_a_relative_path_is_the_cards_and_stays_in_its_folder(tmp_path: Path) -> None:
    card = resolved(adapter_card("a", "."), tmp_path)
    assert isinstance(card.backend, AdapterBackend) and card.backend.adapter == str(tmp_path)
    for outside in ("..", "./x/../../y"):
        with pytest.raises(AdapterError, match="leads out of the card's folder"):
            resolved(adapter_card("a", outside), tmp_path)
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(AdapterError, match="leads out"):
        resolved(adapter_card("a", "./link/etc"), tmp_path)
    hub = adapter_card("a", "lab/adapter")
    assert resolved(hub, tmp_path) == hub


def test_an_adapter_in_the_hub_cache_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--lab--adapter"
    made = adapter_folder(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert locate_adapter(backend("lab/adapter")) == locate_adapter(backend("lab/adapter", revision="abc")) == made
    assert adapter_bytes(backend("lab/adapter")) == (made / "adapter_model.safetensors").stat().st_size


def test_the_shipped_adapters_are_small_and_whole() -> None:
    assert {"smollm2-math", "smollm2-science"} <= set(shipped_adapters())
    for name in shipped_adapters():
        own = backend(f"package:{name}")
        assert adapter_bytes(own) < 2_000_000
        assert read_adapter(locate_adapter(own), own).rank == 8


@pytest.mark.parametrize(
    ("adapter", "engine", "said"),
    [
        ({}, {"adapters": None}, "takes no adapters; set `adapters"),
        ({"rank": 16}, {}, "has rank 16, the engine of 'base' takes up to 8"),
        ({"engine": "nosuch"}, {}, "names the engine 'nosuch', which is no expert with an engine of its own"),
        ({}, {"adapters": {"max": 1}}, "takes 1 adapters, with 'a' there are 2"),
        ({"engine": "a"}, {}, "names itself as its engine"),
        ({"sha256": "short"}, {}, "sha256"),
    ],
)
def test_a_pool_without_a_place_for_it(adapter: dict[str, object], engine: dict[str, object], said: str) -> None:
    base = engine_card(Path("/nowhere"), **engine).model_dump()
    own = {"kind": "adapter", "engine": "base", "adapter": "/somewhere", **adapter}
    other = {"kind": "adapter", "engine": "base", "adapter": "/elsewhere"}
    with pytest.raises(CardError, match=said):
        parse_pool([base, {"name": "a", "backend": own}, {"name": "b", "backend": other}], "p")


def test_the_check_before_registering_reads_adapter_and_base(tmp_path: Path) -> None:
    base = engine_card(base_folder(tmp_path / "base"))
    check_adapter(backend(adapter_folder(tmp_path / "fits")), [base])
    with pytest.raises(AdapterError, match=r"lora_A\.weight is 9 wide"):
        check_adapter(backend(adapter_folder(tmp_path / "other", lambda made: made.update(tensors(hidden=9)))), [base])


def test_the_memory_plan_counts_the_base_once_and_each_adapter(tmp_path: Path) -> None:
    base = engine_card(base_folder(tmp_path / "base"))
    folder = adapter_folder(tmp_path / "a", put("base_model.model.x.lora_A.weight", (RANK, 1_000_000)))
    machine = Machine(memory_gb=100)
    without = plan_memory([base], machine).host_gb
    size = (folder / "adapter_model.safetensors").stat().st_size
    one = plan_memory([base, adapter_card("a", folder)], machine).host_gb
    two = plan_memory([base, adapter_card("a", folder), adapter_card("b", folder)], machine).host_gb
    assert one - without == pytest.approx(2 * size / 2**30)
    assert two - one == pytest.approx(one - without)


def test_staged_whole_named_by_contents_and_swept(tmp_path: Path) -> None:
    base, home = engine_card(base_folder(tmp_path / "base")), tmp_path / "staged"
    home.mkdir()
    source = adapter_folder(tmp_path / "a")
    (source / "pytorch_model.bin").write_bytes(b"a pickle")
    first = stage(adapter_card("math", source), base, home)
    files = {file.name for file in Path(first.folder).iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((Path(first.folder) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base") and config["lora_alpha"] == 4
    assert stage(adapter_card("math", source), base, home) == first
    elsewhere = engine_card(base_folder(tmp_path / "other-base"))
    assert stage(adapter_card("math", source), elsewhere, home).model != first.model

    def doubled(made: Tensors) -> None:
        for tensor in made.values():
            tensor *= 2

    other = stage(adapter_card("math", adapter_folder(tmp_path / "b", doubled)), base, home)
    assert other.model != first.model and other.model.startswith("math-")
    sweep(home, frozenset({first.model}), age=-1)
    assert [folder.name for folder in home.iterdir()] == [first.model]


def test_a_damaged_adapter_leaves_nothing_staged(tmp_path: Path) -> None:
    base, home = engine_card(base_folder(tmp_path / "base")), tmp_path / "staged"
    home.mkdir()
    source = adapter_folder(tmp_path / "a", drop(Q0 + "A.weight"))
    with pytest.raises(AdapterError):
        stage(adapter_card("math", source), base, home)
    assert list(home.iterdir()) == []
