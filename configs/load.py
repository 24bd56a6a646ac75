"""YAML recipes with ``base:`` and ``a.b=c`` overrides become one validated config; every mistake is reported at once.

recipe.yaml (base: [../data/x.yaml]) + ["optim.lr=1e-3"] -> merged mapping + origin of each value -> Config
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from configs.base import ConfigError

Config = TypeVar("Config", bound=BaseModel)
COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded(Generic[Config]):
    """A validated config and where each of its values was set."""

    config: Config
    path: Path
    origins: Mapping[str, str]
    """Dotted path -> file name or ``command line``; a path that is absent has its default value."""

    def yaml(self) -> str:
        """The effective config, every default written out that is one; fit to be loaded again.

        What only the start of the run decides (`RunConfig.undecided`) is left out: written down it would count.
        """
        return yaml.safe_dump(self._decided(), sort_keys=False)

    @property
    def digest(self) -> str:
        """Fingerprint of the effective config, every setting of it."""
        settings = json.dumps(self.config.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()[:12]

    def annotated_yaml(self) -> str:
        """`yaml()` with the origin of each value as a comment."""
        return "".join(_annotated_lines(self._decided(), self.origins))

    def _decided(self) -> dict[str, Any]:
        undecided: Collection[str] = getattr(self.config, "undecided", ())
        return _without(self.config.model_dump(mode="json"), undecided)


def load_config(schema: type[Config], path: str | Path, overrides: Sequence[str] = ()) -> Loaded[Config]:
    """Reads a recipe and its bases, applies overrides, validates. Raises ConfigError naming every mistake."""
    recipe = find_recipe(path)
    layers = [*_read_layers(recipe, ()), (COMMAND_LINE, _parse_overrides(overrides))]
    origins: dict[str, str] = {}
    for name, layer in layers:
        origins.update(dict.fromkeys(_leaves(layer), name))
    merged = OmegaConf.to_container(OmegaConf.merge(*(OmegaConf.create(layer) for _, layer in layers)))
    return Loaded(config=validate(schema, merged, recipe, origins), path=recipe, origins=origins)


def validate(
    schema: type[Config], content: Any, path: Path, origins: Mapping[str, str] = MappingProxyType({})
) -> Config:
    """What a file says, as a section; raises ConfigError naming every mistake, each with the layer that set it."""
    try:
        return schema.model_validate(content)
    except ValidationError as failure:
        mistakes = _describe_all(failure.errors(), schema, origins, path.name)
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ConfigError(f"{count} in {path}\n" + "\n".join(f"  {line}" for line in mistakes)) from None


def find_recipe(path: str | Path) -> Path:
    """A recipe as given, else below the installed package (``configs/smoke/pretrain_vit.yaml`` works anywhere)."""
    for candidate in (Path(path), packaged_root() / path):
        if candidate.is_file():
            return candidate
    shipped = sorted(
        str(p.relative_to(packaged_root())) for p in (packaged_root() / "configs").rglob("*.yaml")
    )
    close = difflib.get_close_matches(str(path), shipped, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ConfigError(f"no recipe at {str(path)!r}{hint}")


def packaged_root() -> Path:
    """Folder that holds configs/, data_pipeline/ and the other packages."""
    return Path(__file__).resolve().parents[1]


def _read_layers(path: Path, below: tuple[Path, ...]) -> list[tuple[str, dict[str, Any]]]:
    if path.resolve() in below:
        chain = " -> ".join(p.name for p in (*below, path))
        raise ConfigError(f"'base' goes in a circle: {chain}")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as failure:
        raise ConfigError(f"cannot read {path}: {failure}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, not a mapping of keys to values")
    bases = content.pop("base", [])
    layers: list[tuple[str, dict[str, Any]]] = []
    for base in [bases] if isinstance(bases, str) else bases:
        base_path = path.parent / str(base)
        if not base_path.is_file():
            raise ConfigError(f"base: no file {str(base_path)!r}  [{path.name}]")
        layers += _read_layers(base_path, (*below, path.resolve()))
    return [*layers, (path.name, {str(key): value for key, value in content.items()})]


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    wrong = [text for text in overrides if "=" not in text or text.startswith(("=", "-"))]
    if wrong:
        raise ConfigError(
            f"overrides are written key=value, for instance optim.lr=1e-3; got {', '.join(map(repr, wrong))}"
        )
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (yaml.YAMLError, OmegaConfBaseException) as failure:
        raise ConfigError(f"cannot read the overrides {list(overrides)}: {failure}") from None
    return {str(key): value for key, value in parsed.items()} if isinstance(parsed, dict) else {}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        yield dotted
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{dotted}.")


def _describe_all(
    errors: Sequence[ErrorDetails], schema: type[BaseModel], origins: Mapping[str, str], recipe: str
) -> list[str]:
    """One line per path: the members of a union each complain about the same value."""
    reasons: dict[str, list[str]] = {}
    for error in errors:
        whole = [str(part) for part in error["loc"]]
        location = _written_location(schema, whole)
        section = _section(schema, whole[: whole.index(location[-1])] if location else [])
        dotted = ".".join(_without_added_index(location, origins)) or "recipe"
        reasons.setdefault(dotted, []).append(_reason(error, section, location))
    return [
        f"{dotted}: {_join(texts)}  [{_origin(dotted, origins, recipe)}]" for dotted, texts in reasons.items()
    ]


def _join(reasons: Sequence[str]) -> str:
    first, *others = dict.fromkeys(reasons)
    return " or ".join([first, *(other.split(" is not allowed: ")[-1] for other in others)])


def _origin(dotted: str, origins: Mapping[str, str], recipe: str) -> str:
    """The layer that set the value, or the nearest section around it."""
    while dotted and dotted not in origins:
        dotted = dotted.rpartition(".")[0]
    return origins.get(dotted, recipe)


def _reason(mistake: ErrorDetails, section: type[BaseModel], location: list[str]) -> str:
    if mistake["type"] == "extra_forbidden":
        known = list(section.model_fields)
        close = difflib.get_close_matches(location[-1], known, n=1)
        return (
            f"no such key; did you mean {close[0]!r}?"
            if close
            else f"no such key; allowed are {', '.join(known)}"
        )
    if mistake["type"] == "missing" and str(mistake["loc"][-1]) == location[-1]:
        field = section.model_fields[location[-1]]
        return f"missing; give it a value{f' ({field.description.splitlines()[0]})' if field.description else ''}"
    if mistake["type"] == "union_tag_invalid":
        tag, allowed = mistake["ctx"]["tag"], mistake["ctx"]["expected_tags"]
        return f"{tag!r} is not a {mistake['ctx']['discriminator'].strip(chr(39))}; allowed are {allowed}"
    message = mistake["msg"].removeprefix("Value error, ")
    if isinstance(mistake["input"], Mapping):
        return message
    return f"{mistake['input']!r} is not allowed: {message[0].lower()}{message[1:]}"


def _written_location(schema: type[BaseModel], location: list[str]) -> list[str]:
    """The part of pydantic's location that the user wrote; it adds the label of a union's member behind its field."""
    written: list[str] = []
    for depth, part in enumerate(location):
        section = _section(schema, location[:depth])
        if part in section.model_fields:
            written.append(part)
            if not _members(section, part):
                break
        elif not (written and part in _tags(_section(schema, location[: depth - 1]), written[-1])):
            written.append(part)
    return written


def _without_added_index(location: Sequence[str], origins: Mapping[str, str]) -> Iterator[str]:
    """A field that takes one or many counts the one as number 0, where the user wrote a mapping."""
    for depth, part in enumerate(location):
        inside = ".".join([*location[:depth], ""])
        if part != "0" or not any(dotted.startswith(inside) for dotted in origins):
            yield part


def _section(schema: type[BaseModel], location: Sequence[str]) -> type[BaseModel]:
    """The section at a location; of a union the member whose label follows, else the first."""
    for depth, part in enumerate(location):
        members = _members(schema, part)
        if members:
            tags = _tags(schema, part)
            label = location[depth + 1] if depth + 1 < len(location) else None
            schema = tags.get(label, members[0]) if label is not None else members[0]
    return schema


def _members(schema: type[BaseModel], name: str) -> list[type[BaseModel]]:
    """The sections that a field may hold; none for a plain value."""
    field = schema.model_fields.get(name)
    options = [] if field is None else list(_parts(field.annotation))
    return [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]


def _parts(annotation: Any) -> Iterator[Any]:
    """A type and those that it is put together from."""
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


def _tags(schema: type[BaseModel], name: str) -> dict[str, type[BaseModel]]:
    """The members of a field's union by the values of its discriminator."""
    field = schema.model_fields.get(name)
    if field is None or not isinstance(field.discriminator, str):
        return {}
    return {
        str(tag): member
        for member in _members(schema, name)
        for tag in get_args(member.model_fields[field.discriminator].annotation)
    }


def _without(tree: Mapping[str, Any], names: Collection[str], prefix: str = "") -> dict[str, Any]:
    return {
        key: _without(value, names, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if f"{prefix}{key}" not in names
    }


def _annotated_lines(tree: Mapping[str, Any], origins: Mapping[str, str], prefix: str = "") -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:\n"
            yield from _annotated_lines(value, origins, f"{dotted}.")
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
            yield f"{indent}{key}: {text}  # {origins.get(dotted, 'default')}\n"
