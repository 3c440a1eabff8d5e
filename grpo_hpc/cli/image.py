"""``grpo-hpc image``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from grpo_hpc.observe.jsonl import json_text

if TYPE_CHECKING:
    from grpo_hpc.images.spec import ImageSpec

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_TOOLS = click.Choice(["apptainer", "docker", "podman"])
_versions = click.option(
    "--versions", type=_FILE, help="Your own list of images, of the form of containers/versions.yaml."
)
_base = click.option("--base", help="Start from this image; for Apptainer also localimage:FILE or docker-archive:FILE.")
_build_base = click.option("--build-base", help="Install packages in this image; absent: in the one of --base.")


@click.group("image", short_help="Render, build and check container images.")
def command() -> None:
    """Container images for runs: one list of pinned versions, as Dockerfiles and as Apptainer definitions."""


@command.command("render", short_help="Print a Dockerfile or Apptainer definition.")
@click.argument("name", required=False)
@click.option(
    "--format", "kind", type=click.Choice(["dockerfile", "apptainer"]), default="dockerfile", show_default=True
)
@click.option("--write", type=_FOLDER, help="Write both formats of every image, or of NAME, into this folder instead.")
@_base
@_build_base
@_versions
def render_command(
    name: str | None, kind: str, write: Path | None, base: str | None, build_base: str | None, versions: Path | None
) -> None:
    """Print the build file of the image NAME (cpu, gpu or gpu-ngc)."""
    from grpo_hpc.files import write_atomically
    from grpo_hpc.images.render import SUFFIX, render
    from grpo_hpc.images.spec import load_images

    if name is None and write is None:
        raise click.UsageError("Name an image, or give --write FOLDER to write all of them.")
    names = [name] if name else list(load_images(versions))
    images = {one: _image(one, versions, base, build_base) for one in names}
    for one, image in images.items():
        for form in SUFFIX:
            if write:
                write.mkdir(parents=True, exist_ok=True)
                write_atomically(write / f"{one}{SUFFIX[form]}", render(one, image, form))
            elif form == kind:
                click.echo(render(one, image, form), nl=False)


@command.command("wheels", short_help="Fill a folder for builds without a network.")
@click.argument("name")
@click.argument("folder", type=_FOLDER)
@_versions
def wheels_command(name: str, folder: Path, versions: Path | None) -> None:
    """Download every package of the image NAME into FOLDER, and add the wheel of grpo-hpc itself.

    pip takes them from the index it is configured with, for the Python of the image and not of this machine. What is in
    FOLDER already is not fetched again.
    """
    from grpo_hpc.images.context import download_wheels

    image = _image(name, versions)
    download_wheels(folder, image)
    click.echo(f"{len(image.requirements())} packages in {folder}")
    click.echo(f"Build with: grpo-hpc image build {name} --wheels {folder}")


@command.command("build", short_help="Build an image.")
@click.argument("name")
@click.argument("options", metavar="[-- OPTION...]", nargs=-1, type=click.UNPROCESSED)
@click.option("--tool", type=_TOOLS, default="apptainer", show_default=True, help="What builds it.")
@click.option("--target", help="SIF file or tag to write; default grpo-hpc-NAME.sif or localhost/grpo-hpc:NAME.")
@click.option("--wheels", type=_FOLDER, help="Install from this folder alone, without a package index.")
@click.option("--pip-conf", type=_FILE, help="pip's settings during the build, such as the index to use.")
@click.option("--dry-run", is_flag=True, help="Print the build file and the command only.")
@_base
@_build_base
@_versions
def build_command(
    name: str,
    tool: str,
    target: str | None,
    wheels: Path | None,
    pip_conf: Path | None,
    options: tuple[str, ...],
    dry_run: bool,
    base: str | None,
    build_base: str | None,
    versions: Path | None,
) -> None:
    """Build the image NAME (cpu, gpu or gpu-ngc). What stands after `--` goes to the tool's own build command."""
    from shlex import join

    from grpo_hpc.images import build
    from grpo_hpc.images.render import render

    if wheels and pip_conf:
        raise click.UsageError("--wheels needs no index, so --pip-conf has no meaning beside it.")
    builder = build.as_tool(tool)
    image = _image(name, versions, base, build_base)
    text = render(name, image, build.format_of(builder))
    target = target or build.default_target(name, builder)
    if dry_run:
        context = wheels or Path("CONTEXT")
        click.echo(text)
        click.echo(join(build.build_command(builder, build.build_file(context, builder), context, target, options)))
        return
    build.build(builder, image, text, target, wheels=wheels, pip_conf=pip_conf, options=options)
    click.echo(f"Built {target}")
    click.echo(f"Check it with: grpo-hpc image check {target} --tool {tool}")


@command.command("check", short_help="Compare an image with its list and a run.")
@click.argument("image", required=False)
@click.option("--tool", type=_TOOLS, default="apptainer", show_default=True, help="What runs the image.")
@click.option("--here", is_flag=True, help="Check the environment of this command instead of an image.")
@click.option("--name", help="Image that it should be (cpu, gpu, gpu-ngc); absent: the one that it says it is.")
@click.option("--run", "run_file", type=_FILE, help="Also check that this run file's needs are met.")
@click.option(
    "--bind", "binds", multiple=True, help="Folder to show inside, besides the working directory; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print facts and findings as JSON.")
@_versions
def check_command(
    image: str | None,
    tool: str,
    here: bool,
    name: str | None,
    run_file: Path | None,
    binds: tuple[str, ...],
    as_json: bool,
    versions: Path | None,
) -> int:
    """Look inside IMAGE, a SIF file or the name of an image: versions, imports, GPUs, NCCL, what a run needs.

    Ends with 1 when something is not as it should be. GPUs and drivers are those of the machine that this runs on,
    so run it inside an allocation.
    """
    import sys

    from grpo_hpc.config import load_run
    from grpo_hpc.images.build import as_tool
    from grpo_hpc.images.check import compare, failed, image_name, probe_environment
    from grpo_hpc.jobs.runtimes import inside

    if bool(image) == here:
        raise click.UsageError("Give an IMAGE to look into, or --here, and not both.")
    cfg = load_run(run_file) if run_file else None
    builder = as_tool(tool)
    name = name or image_name([] if here else inside(builder, str(image), gpus=False))
    spec = _image(name, versions)
    python = [sys.executable] if here else [*inside(builder, str(image), spec.device == "cuda", binds), "python3"]
    facts = probe_environment(python, spec, cfg)
    findings = compare(facts, spec, cfg)
    if as_json:
        from dataclasses import asdict

        shown = {"name": name, "ok": not failed(findings), "findings": [asdict(f) for f in findings], "facts": facts}
        click.echo(json_text(shown, indent=2))
    else:
        from rich.console import Console

        from grpo_hpc.images.show_images import show_findings

        show_findings(f"{image or 'this environment'} as image {name}", findings, Console())
    return int(failed(findings))


def _image(name: str, versions: Path | None, base: str | None = None, build_base: str | None = None) -> ImageSpec:
    from grpo_hpc.images.spec import image_named, load_images

    image = image_named(name, load_images(versions))
    if build_base and not base:
        raise click.UsageError("--build-base needs --base.")
    return image.on(base, build_base or base) if base else image
