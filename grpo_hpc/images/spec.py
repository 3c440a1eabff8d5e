"""The list of images: containers/versions.yaml, or a site's own file of the same form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from grpo_hpc.config.document import read_yaml
from grpo_hpc.config.fields import field_problems
from grpo_hpc.config.keys import closest
from grpo_hpc.config.problems import Problem, raise_problems, without_secrets
from grpo_hpc.errors import ConfigError
from grpo_hpc.shipped import shipped

Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9./][A-Za-z0-9_./:@+~=-]*$")]
Pin = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+$")]
Line = Annotated[str, StringConstraints(pattern=r"^[^\n\r]*$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

_SECRETS = (
    "what stands in the list of images is written into the image. Give it to the job, by `secrets` of its profile"
)


class ImageSpec(BaseModel):
    """One image; the comment at the head of containers/versions.yaml says what each key means."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    summary: Line
    base: Word
    build_base: Word | None = None
    python: Annotated[str, StringConstraints(pattern=r"^3\.[0-9]+$")]
    device: Literal["cpu", "cuda"]
    build_packages: list[Word] = []
    packages: list[Word] = []
    pins: list[Pin] = []
    lock: Line
    source_builds: list[Pin] = []
    imports: list[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]+$")]] = []
    environment: dict[Variable, Line] = Field(default_factory=dict)

    def on(self, base: str, build_base: str) -> ImageSpec:
        """The same image on other bases.

        Raises:
            ConfigError: a base is no image reference.
        """
        try:
            return ImageSpec.model_validate({**self.model_dump(), "base": base, "build_base": build_base})
        except ValidationError:
            raise ConfigError(f"'{base}' or '{build_base}' is no name of an image") from None

    def requirements(self) -> dict[str, str]:
        """Version of every Python package of the image, by normalised name."""
        return {**read_lock(find_file(self.lock)), **pinned(self.source_builds)}


def load_images(path: Path | None = None) -> dict[str, ImageSpec]:
    """Every image of the file ``path``, by name; of the shipped list when absent.

    Raises:
        ConfigError: names each wrong key of the file.
    """
    source = path or shipped("containers/versions.yaml")
    document = read_yaml(source, "list of images", "my-image: {...}")
    problems = list(document.problems)
    images = {}
    for name, values in document.values.items():
        try:
            images[str(name)] = ImageSpec.model_validate(values)
        except ValidationError as error:
            found = field_problems(error, ImageSpec)
            problems += [Problem(f"{name}.{problem.key}".rstrip("."), problem.text) for problem in found]
    raise_problems(without_secrets(document.values, problems, _SECRETS), str(source), document.places)
    return images


def image_named(name: str, images: dict[str, ImageSpec]) -> ImageSpec:
    """The image ``name``.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in images:
        near = closest(name, images)
        hint = f"Did you mean '{near}'?" if near else f"Images: {', '.join(images)}"
        raise ConfigError(f"there is no image '{name}'", hint)
    return images[name]


def find_file(name: str) -> Path:
    """A file named in the list: as it is seen from the working directory, or one that the package ships.

    Raises:
        ConfigError: it is in neither place.
    """
    if Path(name).is_file():
        return Path(name)
    try:
        return shipped(name)
    except FileNotFoundError:
        raise ConfigError(f"the lock file {name} does not exist") from None


def read_lock(path: Path) -> dict[str, str]:
    """Version by normalised name of every line ``name==version``."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return pinned([line for line in lines if line])


def pinned(requirements: list[str]) -> dict[str, str]:
    """Version by normalised name of requirements of the form ``name==version``.

    Raises:
        ConfigError: a requirement has another form, which would not fix a version.
    """
    versions = {}
    for requirement in requirements:
        name, equals, version = requirement.partition("==")
        if not equals or not version:
            raise ConfigError(f"'{requirement}' fixes no version", "Write name==version.")
        versions[normalised(name)] = version.strip()
    return versions


def normalised(name: str) -> str:
    """The one spelling of a package name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower().strip()
