"""What a user may say, validated once: the same names on the command line, in YAML and in Python.

`--input` values have the grammar `1x(1..512)x384`: a number fixes a dimension, `(low..high)` bounds
it (either end may be left out), and a name such as `batch` or `?` leaves it as the model has it.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_serializer,
    model_validator,
)

from lbcompiler.errors import ConfigError
from lbcompiler.formats import format_named
from lbcompiler.ir.model import Dim
from lbcompiler.quantizers import QUANTIZERS

WEIGHT_ONLY = "none"
FLOAT = "float32"
FLOAT_CANDIDATE = "float"  # among formats to choose from: a layer may stay as it is
# those that a kernel computes on the fly
ACTIVATION_RULES = {"floor", "rceil", "even", "absmax", "four_over_six"}

BUDGETS = ("effective_bits", "max_kl", "min_qsnr", "max_latency")
CANDIDATES = ("nvfp4", "nvint4", "mxfp4", "mxfp6", "mxint6", "mxint8")  # where a budget says none

RANGE = re.compile(r"^\((\d*)\.\.(\d*)\)$")


def parse_shape(text: str) -> tuple[int | str | Dim, ...]:
    """`1x(1..512)x?` -> (1, Dim("", 1, 512), "?"). Raises ConfigError on anything else."""
    dims: list[int | str | Dim] = []
    for part in text.split("x") if text else []:
        if found := RANGE.match(part):
            low, high = found.groups()
            dims.append(Dim("", int(low or 1), int(high) if high else None))
        elif part.isdigit():
            dims.append(int(part))
        elif re.match(r"^(\?|[A-Za-z_]\w*)$", part):
            dims.append(part)
        else:
            raise ConfigError(
                f"cannot read the dimension {part!r} of the shape {text!r}: write a number, a "
                "range such as (1..512), or ? for a dimension that stays as it is, joined by x, "
                "e.g. 1x(1..512)"
            )
    for dim in dims:
        if dim == 0 or (
            isinstance(dim, Dim) and dim.high is not None and dim.high < max(1, dim.low)
        ):
            raise ConfigError(
                f"the shape {text!r} has an empty dimension: only the lower bound of a range, of a "
                "past that may be empty, can be 0"
            )
    return tuple(dims)


def parse_inputs(items: Iterable[str]) -> dict[str, str]:
    """`["x:1x128"]` -> {"x": "1x128"}; a name may hold colons, a shape may not."""
    inputs = {}
    for item in items:
        name, found, shape = item.rpartition(":")
        if not found or not name:
            raise ConfigError(f"--input {item!r} is not NAME:SHAPE, e.g. input_ids:1x128")
        parse_shape(shape)
        inputs[name] = shape
    return inputs


def masked(database: str) -> str:
    """A URL without its password, for messages and files."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", database)


def _strings(value: Any) -> Any:
    if isinstance(value, (list, tuple, set)):
        return tuple(value)
    return (value,)


Patterns = Annotated[tuple[str, ...], BeforeValidator(_strings)]


class CompileConfig(BaseModel):
    """One compilation, reproducible: `--save-config` writes it, `--config` reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str = "cpu"
    format: str = "mxint8"
    act_format: str | None = None  # None: the same as `format`; "none": weights only
    scale_rule: str | None = None  # of the weights; None: the format's default
    act_scale_rule: str | None = None
    quantizer: str = "rtn"  # how weights become codes: a name of lbcompiler.quantizers
    formats: Patterns = ()  # candidates to choose from for every layer; with a budget
    effective_bits: PositiveFloat | None = None  # budgets, of which one: bits of a weight's element
    max_kl: PositiveFloat | None = None  # nats a token
    min_qsnr: float | None = None  # dB, of the worst output
    max_latency: float | None = Field(None, ge=1)  # times that of the fastest formats' kernels
    sensitivity: Literal["output", "model", "fisher"] = "model"
    hadamard: Literal["auto", "off"] | int | None = None  # None: auto with a quantizer that rotates
    hadamard_seed: NonNegativeInt | None = None  # random signs; None: no signs
    rotate_residual: Literal["auto", "off"] = "off"
    smooth: Literal["auto", "off"] = "off"
    outliers: Literal["auto", "off"] | int = "off"  # channels to multiply in a wider format
    calibration: Literal["random"] | None = None
    calibration_data: str | None = None
    calibration_samples: PositiveInt | None = None
    include: Patterns = ()  # regular expressions on layer names; empty: every layer
    exclude: Patterns = ()
    inputs: dict[str, str] = {}
    on_unsupported: Literal["error", "fallback", "skip"] = "error"
    tuning_db: str | None = None  # a file or URL of `lbc tune`, or the .json of an export

    @field_serializer("tuning_db", when_used="json")
    def _without_password(self, database: str | None) -> str | None:
        """What is written to disk holds no secret: a password belongs to the driver's own file."""
        return None if database is None else masked(database)

    @model_validator(mode="after")
    def _check(self) -> "CompileConfig":
        fmt, act = self.weight_format, self.activation_format
        act = None if act is None else format_named(act.name)
        _known_rule("scale_rule", self.scale_rule, fmt.rules, fmt.name)
        if act is None and self.act_scale_rule is not None:
            raise ConfigError(
                "act_scale_rule was given, but act_format is none: say one or the other"
            )
        if act is not None:
            on_the_fly = tuple(rule for rule in act.rules if rule in ACTIVATION_RULES)
            _known_rule("act_scale_rule", self.act_scale_rule, on_the_fly, act.name)
        if self.quantizer not in QUANTIZERS:
            known = ", ".join(QUANTIZERS)
            raise ConfigError(f"unknown quantizer {self.quantizer!r}: choose one of {known}")
        method = QUANTIZERS[self.quantizer]
        if self.scale_rule is not None and method.rule(fmt, self.scale_rule) != self.scale_rule:
            raise ConfigError(
                f"quantizer {self.quantizer} searches its scales, which the scale rule "
                f"{self.scale_rule} does not: leave it out, or choose another quantizer"
            )
        self._check_choice()
        for pattern in (*self.include, *self.exclude):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"{pattern!r} is no regular expression: {error}") from None
        for shape in self.inputs.values():
            parse_shape(shape)
        return self

    def _check_choice(self) -> None:
        """What is said of the choice of formats goes together."""
        said = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(said) > 1:
            raise ConfigError(f"one budget at a time: {' and '.join(said)} were given")
        if self.formats and "format" in self.model_fields_set:
            raise ConfigError("format was given, and formats to choose from: say one or the other")
        if said and "format" in self.model_fields_set:
            raise ConfigError(
                f"{said[0]} chooses among formats, but the format {self.format} was given: name "
                "the candidates with --formats instead"
            )
        if len(self.formats) > 1 and not self.chooses:
            raise ConfigError(
                "formats to choose from need a budget: --effective-bits, --max-kl, --min-qsnr or "
                "--max-latency"
            )
        for name in self.formats:
            if name != FLOAT_CANDIDATE:
                format_named(name)
        if self.candidates == (FLOAT_CANDIDATE,):
            raise ConfigError("float is the only format to choose from: name a block format too")
        if self.calibration and self.calibration_data:
            raise ConfigError("calibration random was given, and calibration data: say one of them")
        rotates = self.rotates or self.rotate_residual == "auto"
        if self.hadamard_seed is not None and not rotates:
            raise ConfigError("hadamard_seed was given, but no rotation is asked for: --hadamard")
        if self.outliers != "off" and self.activation_format is None:
            raise ConfigError(
                f"outliers {self.outliers} splits off what would spoil rounded activations, and "
                "act_format is none: say one or the other"
            )
        if isinstance(self.outliers, int) and self.outliers < 1:
            raise ConfigError(
                f"outliers {self.outliers}: say how many channels of each input may be split off, "
                "1 or more, or auto or off"
            )
        if isinstance(self.hadamard, int) and (self.hadamard < 2 or self.hadamard.bit_count() != 1):
            raise ConfigError(
                f"a Hadamard rotation has a size of 2, 4, 8, .. (usually 16 to 128), not "
                f"{self.hadamard}; or say auto or off"
            )

    @property
    def budget(self) -> tuple[str, float] | None:
        """(its name, its value), None where there is none."""
        return next(((n, float(v)) for n in BUDGETS if (v := getattr(self, n)) is not None), None)

    @property
    def candidates(self) -> tuple[str, ...]:
        """The formats that a layer may have; "float" among them where that was offered."""
        if self.formats or self.budget is None:
            return self.formats or (self.format,)
        return CANDIDATES

    @property
    def chooses(self) -> bool:
        """Whether what each format would cost is measured on the model."""
        return self.budget is not None

    @property
    def rotates(self) -> bool:
        """Whether rotations are tried, or forced."""
        if self.hadamard is None:
            return QUANTIZERS[self.quantizer].rotates
        return self.hadamard != "off"

    @property
    def measures(self) -> bool:
        """Whether something is decided layer by layer, from calibration data."""
        return (
            self.budget is not None
            or QUANTIZERS[self.quantizer].needs_hessian
            or self.smooth == "auto"
            or self.rotate_residual == "auto"
            or self.outliers != "off"
            or (self.rotates and not isinstance(self.hadamard, int))
            or self.calibration is not None
            or self.calibration_data is not None
        )

    @property
    def weight_format(self) -> Any:
        """A BlockFormat; of several to choose from the first."""
        return format_named(next(name for name in self.candidates if name != FLOAT_CANDIDATE))

    @property
    def activation_format(self) -> Any:
        """A BlockFormat, or None for weight-only."""
        name = self.weight_format.name if self.act_format is None else self.act_format
        return None if name == WEIGHT_ONLY else format_named(name)

    @property
    def weight_rule(self) -> str:
        fmt = self.weight_format
        return QUANTIZERS[self.quantizer].rule(fmt, self.scale_rule or fmt.default_rule)

    @property
    def activation_rule(self) -> str:
        act = self.activation_format
        return WEIGHT_ONLY if act is None else self.act_scale_rule or str(act.default_rule)

    @property
    def input_shapes(self) -> dict[str, tuple[int | str | Dim, ...]]:
        return {name: parse_shape(shape) for name, shape in self.inputs.items()}

    def to_yaml(self) -> str:
        chosen = {"format"} if self.formats or self.budget else set()  # chosen, not given
        return yaml.safe_dump(self.model_dump(mode="json", exclude=chosen), sort_keys=False)


def _known_rule(field: str, rule: str | None, rules: tuple[str, ...], fmt: str) -> None:
    if rule is not None and rule not in rules:
        raise ConfigError(
            f"{field} {rule!r} does not go with {fmt}: choose one of {', '.join(rules)}"
        )


class AnalysisConfig(CompileConfig):
    """What `lbc analyze` may be told: without a budget it measures as well, and chooses nothing."""

    @property
    def candidates(self) -> tuple[str, ...]:
        if self.formats or "format" in self.model_fields_set:
            return self.formats or (self.format,)
        return CANDIDATES

    @property
    def chooses(self) -> bool:
        return True

    @property
    def measures(self) -> bool:
        return True


def make_config(
    given: Mapping[str, Any],
    path: str | Path | None = None,
    kind: type[CompileConfig] = CompileConfig,
) -> CompileConfig:
    """The config of a YAML file (if any) with `given` on top, as `kind`. Raises ConfigError."""
    settings: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(Path(path).read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read the config {path}: {error}") from None
        loaded = {} if loaded is None else loaded  # an empty file asks for the defaults
        if not isinstance(loaded, dict):
            raise ConfigError(f"the config {path} is not a mapping of settings; see --save-config")
        settings.update(loaded)
    settings.update(given)
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"the configuration is not valid: {'; '.join(lines)}") from None
