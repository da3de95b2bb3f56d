"""The catalog: its data is sound, names are found, and the counts are those of the architecture it describes."""

from __future__ import annotations

import json
import re
from importlib.resources import files

import pytest

from memfit.models import architecture, catalog

ENTRIES = [entry for name in catalog.names() if (entry := catalog.lookup(name)) is not None]


def spelling(text: str) -> str:
    return re.sub(r"[^a-z0-9.+]", "", text.lower().rsplit("/", 1)[-1])


def test_at_least_130_models_each_found_by_its_own_name():
    assert len(ENTRIES) == len(catalog.names()) == len(set(catalog.names())) >= 130
    assert [e.name for e in ENTRIES] == list(catalog.names())


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_entry_is_sound(entry):
    assert re.fullmatch(r"[a-z0-9.]+(-[a-z0-9.]+)*", entry.name)
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.repo)
    assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", entry.date)
    assert entry.date <= catalog.version()
    assert entry.params > 10**6
    assert entry.source.startswith("public config.json of ")
    assert entry.params_source.startswith(("counted: ", "model card"))
    assert {"model_type", "architectures"} <= entry.config.keys()
    assert json.loads(json.dumps(entry.config)) == entry.config
    # a published total either is the count or says in words what more it holds
    if entry.published is None or entry.published == entry.params:
        assert not entry.published_note
    else:
        assert entry.published > entry.params
        assert entry.published_note


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_every_spelling_leads_to_its_entry(entry):
    for text in (entry.name, entry.repo, *entry.aliases):
        assert catalog.lookup(text) is entry
        assert catalog.lookup(f"  {text.upper()} ") is entry


def test_names_in_the_files_are_unique():
    stated: dict[str, str] = {}
    count = 0
    for path in files(catalog).iterdir():
        if not path.name.endswith(".json"):
            continue
        for model in json.loads(path.read_text("utf-8"))["models"]:
            count += 1
            for text in (model["name"], model["repo"], *model.get("aliases", ())):
                assert stated.setdefault(spelling(text), model["name"]) == model["name"], text
    assert count == len(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_architecture_has_the_stated_parameters(entry):
    assert architecture(entry.config).num_params == entry.params


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-405b", 405_853_388_800),
        ("llama-4-scout", 108_641_793_536),
        ("mistral-7b-v0.1", 7_241_732_096),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-235b-a22b", 235_093_634_560),
        ("gemma-2-9b", 9_241_705_984),
        ("gemma-3-27b", 27_432_406_640),
        ("phi-3-mini", 3_821_079_552),
        ("gpt2", 124_439_808),
        ("gpt-oss-120b", 116_829_156_672),
        ("flan-t5-xxl", 11_135_332_352),
        ("falcon-mamba-7b", 7_272_665_088),
        ("minimax-text-01", 456_089_655_296),
    ],
)
def test_publicly_stated_totals(name, params):
    entry = catalog.lookup(name)
    assert entry is not None
    assert entry.params == params == entry.published


def test_deepseek_v3_differs_from_the_public_total_by_its_router_biases():
    entry = catalog.lookup("deepseek-v3")
    assert entry is not None
    assert entry.published == 671_026_419_200
    assert entry.published - entry.params == (61 - 3) * 256


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Llama 3.1 8B", "llama-3.1-8b"),
        ("llama-3.1-8b-instruct", "llama-3.1-8b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("META-LLAMA/META-LLAMA-3.1-8B", "llama-3.1-8b"),
        ("llama3.1:8b", "llama-3.1-8b"),
        ("llama3_1_8b", "llama-3.1-8b"),
        ("unsloth/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("Llama-2-7b-chat-hf", "llama-2-7b"),
        ("qwen 2.5 7b instruct", "qwen2.5-7b"),
        ("Qwen2.5-Coder-32B-Instruct", "qwen2.5-coder-32b"),
        ("google/gemma-3-27b-it", "gemma-3-27b"),
        ("microsoft/phi-1_5", "phi-1.5"),
        ("mistral-7b", "mistral-7b-v0.1"),
        ("HuggingFaceH4/zephyr-7b-beta", "mistral-7b-v0.1"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("Mixtral-8x22B-Instruct-v0.1", "mixtral-8x22b-instruct"),
        ("deepseek-r1-0528-qwen3-8b", "qwen3-8b"),
        ("gpt-oss:120b", "gpt-oss-120b"),
    ],
)
def test_loose_spellings(text, name):
    entry = catalog.lookup(text)
    assert entry is not None
    assert entry.name == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-instruct",
        "llama-3.1-9b",
        "TheBloke/Llama-2-7B-AWQ",
        "Qwen/Qwen2.5-72B-Instruct-GPTQ-Int4",
        "./llama-3.1-8b",
        "/models/llama-3.1-8b",
        "a/b/llama-3.1-8b",
        "~/llama-3.1-8b",
        "llama-3.1-8b/",
        "https://example.com/meta-llama/Llama-3.1-8B",
        "x" * 1_000_000,
        "-it" * 1_000_000,
        "\x00\ud800",
    ],
)
def test_unknown_names_paths_and_quantised_copies_are_not_found(text):
    assert catalog.lookup(text) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("lama-3.1-8b", "llama-3.1-8b"),
        ("mistrall-7b-v0.3", "mistral-7b-v0.3"),
        ("TheBloke/Llama-2-7B-AWQ", "llama-2-7b"),
        ("qwen3-30b-a3", "qwen3-30b-a3b"),
        ("someone/llama-3.1-8b-finetune", "llama-3.1-8b"),
        ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "llama-3.1-8b"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "qwen2.5-7b"),
    ],
)
def test_nearest_puts_the_meant_model_first(text, name):
    assert catalog.lookup(text) is None
    assert catalog.nearest(text)[0] == name
    assert len(catalog.nearest(text)) <= 3


@pytest.mark.parametrize("host", ["https://huggingface.co", "http://www.huggingface.co", "hf.co"])
def test_the_address_of_a_page_is_its_model(host):
    assert catalog.lookup(f"{host}/meta-llama/Llama-3.1-8B/").name == "llama-3.1-8b"


def test_nearest_of_nonsense_is_empty_and_limit_holds():
    assert catalog.nearest("wxyz!!") == ()
    assert catalog.nearest("x" * 1_000_000) == ()
    assert len(catalog.nearest("llama-3", limit=1)) == 1


def test_version_is_the_newest_date():
    assert catalog.version() == max(e.date for e in ENTRIES)


BY_ITS_OWN_CLASS = re.compile(r"counted: (\w+) of transformers [\d.]+ on the meta device")
COUNTED = [e for e in ENTRIES if BY_ITS_OWN_CLASS.fullmatch(e.params_source)]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("entry", COUNTED, ids=lambda e: e.name)
def test_transformers_class_has_the_stated_parameters(entry):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = json.loads(json.dumps(entry.config))
    config.pop("quantization_config", None)  # the count is of the unpacked weights
    stated = BY_ITS_OWN_CLASS.fullmatch(entry.params_source)
    assert stated is not None
    with torch.device("meta"):
        model = getattr(transformers, stated[1])._from_config(CONFIG_MAPPING[config["model_type"]].from_dict(config))
    model.tie_weights()
    assert sum(p.numel() for p in model.parameters()) == entry.params
