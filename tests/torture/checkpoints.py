"""Checkpoints: config, generation config, tokenizer files, safetensors headers, indexes of shards, and GGUF files.

Each case does what an export does with a checkpoint, except for tracing graphs. What it accepts must be what
independent readers find in the damaged checkpoint.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support.json_mutations import damaged, mutated
from torture.case import Case, FaultClass
from torture.fixtures import copied, fixture
from torture.forked import in_child
from torture.outcomes import Outcome

SECONDS = 60.0
INDEX = "model.safetensors.index.json"
ROPES: tuple[dict[str, Any], ...] = (
    {},
    {"rope_scaling": {"type": "linear", "factor": 4.0}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "mscale": 1.0}},
    {
        "rope_scaling": {
            **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "original_max_position_embeddings": 128,
        }
    },
    {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 17},
)
Damage = Callable[[Path, random.Random], None]  # changes files of a checkpoint


def exporting(damage: Damage) -> Callable[[Iterator[Case], Path], Iterator[Outcome]]:
    """Return the `run` of a class that damages a Hugging Face folder."""

    def run(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
        from torture.exported_right import import_readers, is_right

        good = fixture(shared, "checkpoint")
        import_readers()
        for case in cases:
            folder = copied(good, case.folder)
            damage(folder, case.rng)
            names = [folder.name, *(path.name for path in folder.iterdir())]
            yield in_child(lambda folder=folder: is_right(folder, folder.with_name("out")), names, SECONDS)

    return run


def json_damage(
    name: str, prepare: Callable[[dict[str, Any], random.Random], None] = lambda values, rng: None
) -> Damage:
    """Return a damage of a JSON file: its values mutated, or its bytes damaged. prepare: changes the values first."""

    def damage(folder: Path, rng: random.Random) -> None:
        path = folder / name
        values = json.loads(path.read_text())
        prepare(values, rng)
        if rng.random() < 0.25:
            path.write_bytes(damaged(json.dumps(values).encode(), rng))
            return
        changed = mutated(values, rng)
        path.write_text(json.dumps(mutated(changed, rng) if rng.random() < 0.3 and changed else changed))

    return damage


def add_rope(values: dict[str, Any], rng: random.Random) -> None:
    """Give a config one of the kinds of rope, as transformers 4 or 5 writes it, or another architecture."""
    changes = rng.choice(ROPES)
    values.update(changes)
    if rope := changes.get("rope_scaling"):
        values.pop("rope_parameters", None)
        if rng.random() < 0.5:
            values["rope_parameters"] = {**values.pop("rope_scaling"), "rope_theta": 10000.0}
            values["rope_parameters"].setdefault("rope_type", rope.get("type"))


def generation_damage(folder: Path, rng: random.Random) -> None:
    """Mutate generation_config.json, which has all settings that the runtime reads."""
    settings = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1}
    json_damage("generation_config.json", lambda values, rng: values.update(settings, max_new_tokens=20))(folder, rng)


def tokenizer_damage(folder: Path, rng: random.Random) -> None:
    """Mutate tokenizer.json, tokenizer_config.json or the chat template."""
    kind = rng.randrange(5)
    if kind < 2:
        json_damage("tokenizer.json")(folder, rng)
    elif kind < 4:
        json_damage("tokenizer_config.json")(folder, rng)
    else:
        template = folder / "chat_template.jinja"
        template.write_bytes(damaged(template.read_bytes(), rng))


def safetensors_damage(folder: Path, rng: random.Random) -> None:
    """Damage the header of model.safetensors, or cut the file."""
    from torture.weight_headers import broken

    path = folder / "model.safetensors"
    path.write_bytes(broken(path.read_bytes(), rng))


def shards_damage(folder: Path, rng: random.Random) -> None:
    """Write the weights as three shards, and damage the index or a shard."""
    from torture.weight_headers import broken

    names = split(folder)
    kind = rng.randrange(10)
    path = folder / rng.choice(names)
    if kind < 6:
        json_damage(INDEX)(folder, rng)
    elif kind == 6:
        path.unlink()
    elif kind == 7:
        path.write_bytes((folder / rng.choice(names)).read_bytes())
    elif kind == 8:  # a name that leaves the folder, or a tensor in another shard
        index = json.loads((folder / INDEX).read_text())
        name = rng.choice(list(index["weight_map"]))
        index["weight_map"][name] = rng.choice([*names, "../x.safetensors", "/etc/passwd", "", ".", "a\0b", "x" * 300])
        (folder / INDEX).write_text(json.dumps(index))
    else:
        path.write_bytes(broken(path.read_bytes(), rng))


def split(folder: Path) -> list[str]:
    """Replace model.safetensors by three shards and an index. Returns the names of the shards."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{i + 1:05}-of-00003.safetensors" for i in range(3)]
    home = {name: names[i % 3] for i, name in enumerate(sorted(tensors))}
    for shard in names:
        save_file({name: tensors[name] for name in tensors if home[name] == shard}, folder / shard)
    total = sum(tensor.nbytes for tensor in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": home}))
    return names


def gguf(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """A GGUF file whose header is damaged, or that is cut off."""
    from edgellama.exporter.checkpoint.gguf.file import GGUFFile
    from torture.artifacts import broken
    from torture.exported_right import import_readers, is_right

    good = fixture(shared, "gguf") / "model.gguf"
    data, header = good.read_bytes(), GGUFFile(good).header_size()
    import_readers()
    for case in cases:
        path = case.folder / good.name
        kind = case.rng.randrange(10)
        if kind < 5:
            path.write_bytes(broken(data[:header], case.rng) + data[header:])
        elif kind < 9:
            path.write_bytes(with_number(data, header, case.rng))
        else:
            path.write_bytes(data[: case.rng.choice((case.rng.randrange(len(data)), case.rng.randrange(64)))])
        yield in_child(lambda path=path: is_right(path, path.with_name("out")), [path.name], SECONDS)


def with_number(data: bytes, header: int, rng: random.Random) -> bytes:
    """Return a copy with a number of 4 or 8 bytes overwritten; half of them in the table of tensors."""
    at = rng.randrange(24, header - 8) if rng.random() < 0.5 else rng.randrange(header - 1500, header - 8)
    size = rng.choice((4, 8))
    value = rng.choice((0, 1, 2, 3, 7, 32, 64, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) + 5))
    return data[:at] + (value % (1 << 8 * size)).to_bytes(size, "little") + data[at + size :]


RULE = (
    "the exporter accepts it and reads what is there: each setting of config.json has the value in the file, each "
    "tensor is what the safetensors library reads, a text has the tokens of transformers; and the runtime "
    "loads the tokenizer and the generation config"
)
CLASSES = (
    FaultClass(
        "checkpoint-config",
        "config.json with each kind of rope, mutated or damaged",
        RULE,
        400,
        60,
        exporting(json_damage("config.json", add_rope)),
    ),
    FaultClass(
        "checkpoint-generation",
        "generation_config.json mutated or damaged",
        RULE,
        200,
        30,
        exporting(generation_damage),
    ),
    FaultClass(
        "checkpoint-tokenizer",
        "tokenizer.json, tokenizer_config.json or the chat template mutated or damaged",
        RULE,
        300,
        40,
        exporting(tokenizer_damage),
    ),
    FaultClass("checkpoint-weights", "the header of model.safetensors", RULE, 300, 60, exporting(safetensors_damage)),
    FaultClass(
        "checkpoint-gguf",
        "the header of a GGUF file",
        "the exporter accepts it, every tensor is what the gguf package reads, and the runtime loads the tokenizer",
        400,
        80,
        gguf,
    ),
    FaultClass("checkpoint-shards", "an index of shards, or a shard", RULE, 300, 60, exporting(shards_damage)),
)
