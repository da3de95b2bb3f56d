"""No lever is dropped silently: for every target and every lever, a value is written, or refused by name."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
from export_jobs import LAUNCHERS, PROGRAMS, base, changes, job, others

from memfit.errors import JobErrors, MemfitError
from memfit.export import NAMES, export, target
from memfit.export.levers import FACTS, LEVERS, effective, is_neutral, neutral
from memfit.job import BY_PATH, FIELDS, complete, from_kwargs

CHANGES = list(changes())


PATH = {f.name: f.path for f in LEVERS}


def substance(answer):
    """The files of an export without comments: what the tool reads."""
    return {file.name: strip(file.text) for file in answer.files}


@cache
def exported(name, given):
    """An export, None when it is refused with the names of levers."""
    try:
        return export(given, name)
    except JobErrors as error:
        return None if error.errors else error


def strip(text):
    """Text without comments; ``#`` inside words stays."""
    lines = [line.split("  # ")[0].rstrip() for line in text.splitlines() if not line.lstrip().startswith("#")]
    return "\n".join(line for line in lines if line)


@cache
def known(name, around):
    """Values and files around a lever: what a change is held against; None where even that is refused."""
    answer = exported(name, job(**base(name, **dict(around))))
    return None if answer is None else (answer.plan.values, substance(answer))


def test_every_field_of_a_training_job_is_a_lever_or_a_fact():
    train = {f.path for f in FIELDS if f.kind != "serve" and f.type != "lora"}
    assert {f.path for f in LEVERS} == train
    assert train >= FACTS


@pytest.mark.parametrize("name", NAMES)
def test_a_target_declares_only_levers_that_exist(name):
    assert set(target(name).levers) <= set(BY_PATH)
    assert not set(target(name).levers) & FACTS


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("lever", [f.path for f in LEVERS if f.path not in FACTS])
def test_a_lever_without_a_neutral_value_is_declared(name, lever):
    """What always does something cannot be left out of a declaration."""
    values = effective({**complete(from_kwargs(model="m")).values, "name": "m", "config": None, "extra": None})
    try:
        neutral(BY_PATH[lever], values)
    except KeyError:
        assert lever in target(name).levers


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_value_of_every_lever_is_written_or_refused_by_name(name):
    """Changing a lever changes what the tool reads, or raises an error that names it."""
    silent = []
    for lever, around, value in CHANGES:
        before = known(name, tuple(sorted(around.items())))
        fields = base(name, **around)
        if before is None:
            continue
        answer = exported(name, job(**{**fields, lever: value}))
        if answer is None:
            continue
        original, files = before
        if answer.plan.values[lever] == original[lever]:
            continue
        if substance(answer) == files:
            silent.append((lever, around, value))
    assert not silent


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_not_declared_is_refused_with_its_name(name):
    """Every undeclared lever, away from its neutral value, is named in the error."""
    missed = []
    for lever, around, value in CHANGES:
        spec = next(f for f in LEVERS if f.name == lever)
        if spec.path in target(name).levers:
            continue
        fields = base(name, **around)
        given = job(**{**fields, lever: value})
        done = complete(given)
        values = effective({**done.values, "name": given.model.name, "config": given.model.config, "extra": None})
        if is_neutral(spec, values) or values[lever] is None:
            continue
        try:
            export(given, name)
            missed.append((lever, value))
        except JobErrors as error:
            if spec.path not in {e.path for e in error.errors}:
                missed.append((lever, value, str(error)))
    assert not missed


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_declared_lever_has_a_value_that_is_written(name):
    """A declaration that no job can reach would be idle talk."""
    reached = set()
    for lever, around, value in CHANGES:
        path = next(f.path for f in LEVERS if f.name == lever)
        if path in reached:
            continue
        if exported(name, job(**{**base(name, **around), lever: value})) is not None:
            reached.add(path)
    assert set(target(name).levers) <= reached


def test_a_hint_names_targets_that_can():
    with pytest.raises(JobErrors) as caught:
        export(job(**base("trl", pp=2)), "trl")
    (error,) = [e for e in caught.value.errors if e.path == "strategy.pp"]
    assert "TRL" in error.message
    assert "torchtitan" in error.hint
    assert "megatron" in error.hint


def test_all_levers_that_cannot_be_expressed_are_named_at_once():
    with pytest.raises(JobErrors) as caught:
        export(job(**base("accelerate", tp=2, loss="fused", checkpointing="selective")), "accelerate")
    assert {e.path for e in caught.value.errors} >= {"strategy.tp", "strategy.loss", "strategy.checkpointing"}


def test_a_default_that_a_tool_does_not_have_is_replaced_and_said():
    """TRL always computes the loss in chunks: a job that says nothing gets that, one that says otherwise is refused."""
    assert export(job(**base("trl")), "trl").plan.loss == "chunked"
    with pytest.raises(JobErrors, match=r"strategy\.loss"):
        export(job(**base("trl", loss="eager")), "trl")


def test_a_habit_of_another_framework_gives_way_unless_it_was_stated():
    job = {"model": "llama-3.2-1b", "gpu": "h100", "framework": "trl"}
    made = export(from_kwargs(**job), "accelerate")
    assert made.plan.loss == "eager"
    assert any("`strategy.loss` = eager: chunked, usual with trl" in warning for warning in made.plan.warnings)
    with pytest.raises(MemfitError, match="cannot express loss = chunked"):
        export(from_kwargs(**job, loss="chunked"), "accelerate")


@pytest.mark.parametrize("name", PROGRAMS)
def test_serving_jobs_are_refused(name):
    with pytest.raises(JobErrors, match=r"task\.kind"):
        export(from_kwargs(model="llama-3.2-1b", kind="serve"), name)


def test_unknown_targets_and_programs():
    with pytest.raises(MemfitError, match="did you mean `axolotl`"):
        export(job(**base("trl")), "axolotle")
    with pytest.raises(MemfitError, match="is no program"):
        export(job(**base("trl")), "slurm", program="k8s")
    with pytest.raises(MemfitError, match="starts its own program"):
        export(job(**base("trl")), "trl", program="axolotl")


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_launchers_start_every_program(name, program):
    one = export(job(**base(program)), name, program=program)
    two = export(job(**base(program, gpus=16)), name, program=program)
    assert {f.name for f in export(job(**base(program)), program).files} <= {f.name for f in one.files}
    assert one.files[0].text != two.files[0].text
    assert one.files[0].name == two.files[0].name


def test_host_memory_of_offloading_is_asked_for():
    plain = export(job(**base("trl", zero=3)), "slurm", program="trl").files[0].text
    moved = export(job(**base("trl", zero=3, offload=("optimizer",))), "slurm", program="trl").files[0].text

    def memory(text):
        return next(int(line.split("=")[1][:-1]) for line in text.splitlines() if line.startswith("#SBATCH --mem="))

    assert memory(moved) > memory(plain)


def test_others_are_all_values_of_choices():
    for spec in LEVERS:
        if spec.type == "choice" and spec.path not in FACTS:
            assert set(others(spec.name)) == set(spec.choices)
    assert dataclasses.is_dataclass(target("trl"))
