"""`launch checkpoints`: what a run folder holds is listed, verified, taken elsewhere and cleared up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.core.runs.events import AttemptRequested, AttemptStarted, RunFinished
from tests.builders import a_placement, a_spec, a_submit, after
from tests.cli.conftest import Launch
from tests.hooks.states import a_state, a_store, build, put_chunks, save
from trainer_hooks.storage import LocalStorage

RUN_ID = "digits-20260501-ab12"


@pytest.fixture
def run(folder: Path) -> Path:
    """A run folder with the checkpoints of steps 10, 20 and 30, of which 20 and 30 share what is frozen with 10."""
    path = folder / "run"
    store = a_store(LocalStorage(path), keep=9)
    for step in (10, 20, 30):
        save(store, step, metrics={"loss": 1 / step})
    return path


def flip(run: Path, name: str) -> None:
    """One bit of a chunk that only this checkpoint has."""
    manifests = {path.parent.name: json.loads(path.read_text()) for path in run.glob("checkpoints/*/manifest.json")}
    others = {one[0] for other, body in manifests.items() if other != name for one in body["chunks"]}
    chunk = next(one[0] for one in manifests[name]["chunks"] if one[0] not in others)
    path = run / "chunks" / chunk
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)


def record(run: Path, *, is_live: bool, submitted_to: Path | None = None, **checkpoint: Any) -> None:
    """Tell the ledger of this state folder of a run that wrote there."""
    from launcher.cli.common import wiring

    spec = a_spec(checkpoint=checkpoint)
    events: list[Any] = [
        a_submit(spec, run_uri=str(submitted_to or run)),
        AttemptRequested(attempt=1, placement=a_placement(), why="test", run_uri=str(run)),
        AttemptStarted(attempt=1, started_at=after(0)),
    ]
    if not is_live:
        from launcher.core.runs.events import AttemptEnded, AttemptReleased

        events += [
            AttemptEnded(attempt=1, outcome="completed", detail=""),
            AttemptReleased(attempt=1),
            RunFinished(outcome="succeeded", detail=""),
        ]
    wiring().ledger.append(RUN_ID, events, after_seq=0, at=after(0))


def listed(launch: Launch, run: str) -> dict[str, Any]:
    done = launch("checkpoints", "ls", run, "-o", "json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_ls_shows_the_newest_first_with_what_each_added(launch: Launch, run: Path) -> None:
    found = listed(launch, str(run))

    assert [(one["step"], one["state"]) for one in found["checkpoints"]] == [
        (30, "readable"),
        (20, "readable"),
        (10, "readable"),
    ]
    newest, _, oldest = found["checkpoints"]
    assert newest["metrics"] == {"loss": 1 / 30}
    assert oldest["added_bytes"] == oldest["bytes"] == newest["bytes"] > newest["added_bytes"] > 0
    assert found["stored_bytes"] == sum(one["added_bytes"] for one in found["checkpoints"])
    assert found["unreferenced_bytes"] == 0


def test_ls_for_people_names_size_and_folder(launch: Launch, run: Path) -> None:
    out = launch("checkpoints", "ls", "run").out

    assert "3 checkpoints" in out
    assert str(run) in out
    assert "loss 0.1" in out


def test_ls_tells_what_was_never_committed_and_what_is_damaged(launch: Launch, run: Path) -> None:
    (run / "checkpoints" / "step-40-a1").mkdir()
    manifest = run / "checkpoints" / "step-20-a1" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-9])

    found = listed(launch, str(run))

    assert [one["state"] for one in found["checkpoints"]] == ["unfinished", "readable", "damaged", "readable"]
    assert found["unreferenced_bytes"] is None
    assert "damaged" in launch("checkpoints", "ls", str(run)).out


def test_a_run_of_the_ledger_is_found_by_the_beginning_of_its_id(launch: Launch, run: Path) -> None:
    record(run, is_live=False)

    assert listed(launch, "digits")["uri"] == str(run)


def test_what_is_neither_a_run_nor_a_folder_has_the_exit_code_of_an_unknown_run(launch: Launch) -> None:
    for command in (["ls", "nobody"], ["verify", "nobody"], ["gc", "nobody"]):
        assert launch("checkpoints", *command).code == 102


def test_an_empty_folder_has_nothing_to_list_and_nothing_to_verify(launch: Launch, folder: Path) -> None:
    (folder / "empty").mkdir()

    assert listed(launch, "empty")["checkpoints"] == []
    assert launch("checkpoints", "verify", "empty").code == 2
    assert list((folder / "empty").iterdir()) == []


def test_verify_reads_everything_again(launch: Launch, run: Path) -> None:
    done = launch("checkpoints", "verify", str(run))

    assert done.code == 0
    assert done.out.count("whole") == 3


def test_verify_finds_one_flipped_bit_and_says_where(launch: Launch, run: Path) -> None:
    flip(run, "step-20-a1")

    done = launch("checkpoints", "verify", str(run))

    assert done.code == 1
    assert [line.split()[:2] for line in done.out.splitlines()] == [
        ["step-30-a1", "whole,"],
        ["step-20-a1", "damaged:"],
        ["step-10-a1", "whole,"],
    ]
    assert launch("checkpoints", "verify", str(run), "--step", "30").code == 0
    assert launch("checkpoints", "verify", str(run), "--step", "31").code == 2


def test_export_to_torch_gives_what_state_dict_returned(launch: Launch, run: Path, folder: Path) -> None:
    done = launch("checkpoints", "export", str(run), "out", "--to", "torch")

    assert done.code == 0, done.err
    assert sorted(done.out.split()) == [f"out/{name}.pt" for name in ("backbone", "model", "optimizer")]
    model = torch.load(folder / "out" / "model.pt", weights_only=True)
    assert torch.equal(model["w"], a_state(30)["model"]["w"])
    assert torch.load(folder / "out" / "optimizer.pt", weights_only=True) == a_state(30)["optimizer"]


def test_export_takes_the_step_that_was_asked_for(launch: Launch, run: Path, folder: Path) -> None:
    assert launch("checkpoints", "export", str(run), "out", "--to", "torch", "--step", "10").code == 0

    assert torch.equal(torch.load(folder / "out" / "model.pt")["w"], a_state(10)["model"]["w"])


def test_export_falls_back_behind_damage_and_says_so(launch: Launch, run: Path, folder: Path) -> None:
    flip(run, "step-30-a1")

    done = launch("checkpoints", "export", str(run), "out", "--to", "torch")

    assert done.code == 0
    assert "step-30-a1 is damaged" in done.err
    assert torch.equal(torch.load(folder / "out" / "model.pt")["w"], a_state(20)["model"]["w"])
    assert launch("checkpoints", "export", str(run), "again", "--to", "torch", "--step", "30").code == 1
    assert not (folder / "again").exists()


def test_export_never_writes_into_what_is_there(launch: Launch, run: Path, folder: Path) -> None:
    (folder / "out").mkdir()

    done = launch("checkpoints", "export", str(run), "out", "--to", "torch")

    assert (done.code, list((folder / "out").iterdir())) == (2, [])


def test_export_to_safetensors_names_tensors_by_their_paths_and_tied_ones_once(launch: Launch, folder: Path) -> None:
    from safetensors import safe_open

    weight = torch.arange(12.0).reshape(3, 4).t()
    state = {
        "model": OrderedDict([("emb.weight", weight), ("head.weight", weight)]),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "lr": 0.5, "betas": (0.9, 0.99)},
    }
    save(a_store(LocalStorage(folder / "run")), 7, {"model": dict(state["model"]), "optimizer": state["optimizer"]})

    assert launch("checkpoints", "export", "run", "out", "--to", "safetensors").code == 0

    with safe_open(folder / "out" / "model.safetensors", "pt") as file:
        assert list(file.keys()) == ["emb.weight"]
        assert torch.equal(file.get_tensor("emb.weight"), weight)
        assert json.loads(file.metadata()["aliases"]) == {"head.weight": "emb.weight"}
        assert file.metadata()["step"] == "7"
    with safe_open(folder / "out" / "optimizer.safetensors", "pt") as file:
        (name,) = file.keys()
        assert torch.equal(file.get_tensor(name), torch.ones(2))
        rest = json.loads(file.metadata()["state"])
    assert rest["lr"] == 0.5
    assert rest["betas"] == {"$": "tuple", "items": [0.9, 0.99]}
    assert json.dumps({"$": "tensor", "name": name}) in json.dumps(rest)


def test_an_export_that_the_format_cannot_hold_leaves_nothing(launch: Launch, folder: Path) -> None:
    save(a_store(LocalStorage(folder / "run")), 7, {"model": {"w": torch.ones(2, dtype=torch.complex128)}})

    done = launch("checkpoints", "export", "run", "out", "--to", "safetensors")

    assert done.code == 1
    assert "export it to torch" in done.err
    assert sorted(path.name for path in folder.iterdir()) == ["run"]


def test_dcp_loads_what_was_exported_to_it(launch: Launch, run: Path, folder: Path) -> None:
    import warnings

    from torch.distributed.checkpoint import load

    assert launch("checkpoints", "export", str(run), "out", "--to", "dcp").code == 0
    state = {"backbone": {"frozen": torch.zeros(30)}, "model": {"w": torch.zeros(40)}, "optimizer": {"lr": 0.0}}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one process
        load(state, checkpoint_id=folder / "out", no_dist=True)

    assert torch.equal(state["model"]["w"], a_state(30)["model"]["w"])
    assert torch.equal(state["backbone"]["frozen"], torch.arange(30.0))
    assert state["optimizer"]["lr"] == 0.1


def test_a_component_that_would_lie_outside_the_export_is_refused(launch: Launch, folder: Path) -> None:
    save(a_store(LocalStorage(folder / "run")), 7, {"../evil": {"w": torch.ones(2)}})

    done = launch("checkpoints", "export", "run", "out/deep", "--to", "torch")

    assert done.code == 1
    assert sorted(path.name for path in folder.rglob("*.pt")) == []


def test_gc_of_a_folder_removes_only_what_belongs_to_no_checkpoint(launch: Launch, run: Path) -> None:
    manifest, chunks = build(40, a_state(40))
    put_chunks(a_store(LocalStorage(run)), manifest, chunks)
    (run / "checkpoints" / "step-40-a1").mkdir()
    before = listed(launch, str(run))

    done = launch("checkpoints", "gc", str(run))

    after_it = listed(launch, str(run))
    assert done.code == 0
    assert "3 checkpoints stay" in done.out
    assert [one["step"] for one in after_it["checkpoints"]] == [30, 20, 10]
    assert before["unreferenced_bytes"] > 0 == after_it["unreferenced_bytes"]
    assert launch("checkpoints", "verify", str(run)).code == 0


def test_gc_keeps_as_many_as_it_is_told_of_those_that_are_whole(launch: Launch, run: Path) -> None:
    flip(run, "step-30-a1")
    save(a_store(LocalStorage(run), keep=9), 40)

    assert launch("checkpoints", "gc", str(run), "--keep", "2").code == 0

    kept = [one["step"] for one in listed(launch, str(run))["checkpoints"]]
    assert {40, 20} <= set(kept)
    assert 10 not in kept


def test_gc_of_a_run_keeps_what_its_train_yaml_says(launch: Launch, run: Path) -> None:
    record(run, is_live=False, keep=2, keep_best={"metric": "loss", "mode": "max"})

    assert launch("checkpoints", "gc", RUN_ID).code == 0

    assert [one["step"] for one in listed(launch, RUN_ID)["checkpoints"]] == [30, 20, 10]  # 10 has the highest loss


def test_gc_of_a_run_removes_what_its_train_yaml_does_not_ask_for(launch: Launch, run: Path) -> None:
    record(run, is_live=False, keep=2)

    done = launch("checkpoints", "gc", str(run))  # by its folder: it is known all the same

    assert done.code == 0
    assert "1 removed" in done.out
    assert [one["step"] for one in listed(launch, RUN_ID)["checkpoints"]] == [30, 20]


def test_gc_leaves_a_run_that_is_training_alone(launch: Launch, run: Path) -> None:
    record(run, is_live=True, keep=2)

    done = launch("checkpoints", "gc", RUN_ID)

    assert done.code == 2
    assert "launch stop" in done.err
    assert len(listed(launch, RUN_ID)["checkpoints"]) == 3


def test_gc_leaves_every_folder_of_a_run_that_is_training_alone(launch: Launch, run: Path, tmp_path: Path) -> None:
    """Of an attempt in another bucket that has not committed anything there yet."""
    record(run, is_live=True, submitted_to=tmp_path / "elsewhere", keep=2)

    done = launch("checkpoints", "gc", str(run))

    assert done.code == 2
    assert len(listed(launch, str(run))["checkpoints"]) == 3


@pytest.mark.system
def test_looking_and_verifying_and_removing_load_no_torch(run: Path) -> None:
    for command in (["ls", str(run)], ["verify", str(run)], ["gc", str(run)]):
        code = f"import sys; sys.argv[1:] = {['checkpoints', *command]!r}\nfrom launcher.cli import app\n"
        code += "app(standalone_mode=False)\nassert 'torch' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
