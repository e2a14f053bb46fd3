"""One notebook, run without a page: executed by papermill in a kernel of this very Python, then rendered to HTML."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import papermill
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbconvert import HTMLExporter

from carblib.base import files
from carblib.base.errors import Interrupted, one_line
from carblib.base.progress import without_progress
from carblib.params import project_root

# Rendered notebooks must open from disk: nbconvert's page without the scripts it would fetch from the network, and with
# the pictures' alternative texts, which it leaves out.
_PICTURE = """{{% block data_{block} %}}
<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:{kind};base64,{{{{ output.data['{kind}'] | escape_html }}}}"
alt="{{{{ (output | get_metadata('alt', '{kind}') or '') | escape_html }}}}"></div>
{{% endblock %}}"""
_OFFLINE_PAGE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
""" + "\n".join(_PICTURE.format(block=block, kind=f"image/{kind}") for block, kind in (("png", "png"), ("jpg", "jpeg")))


class NotebookFailed(Exception):
    """A notebook that did not finish; the message says where and why."""


class _ThisPython(KernelSpecManager):
    """Offers one kernel: the Python that runs this module, whatever kernels the user has registered."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """Return the kernel of this interpreter; its log level hides remarks on the loopback connection."""
        argv = [sys.executable, "-m", "ipykernel_launcher", "--log-level=ERROR", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


class _Indented(io.TextIOBase):
    """What the kernel prints, passed on to the terminal a little indented."""

    def write(self, text: str) -> int:
        """Print the lines of a text; empty ones are left out."""
        for line in text.splitlines():
            if line:
                print(f"    | {line}", flush=True)
        return len(text)


def execute(source: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Run one notebook in a kernel of this interpreter and save it, outputs included, as `output`.

    Ctrl-C interrupts the kernel, so that training stops at a checkpoint, and then raises KeyboardInterrupt; a second
    one kills the kernel. Raises NotebookFailed naming cell and reason, also for a kernel that died; the first line of
    the saved notebook then says it too.
    """
    try:
        _execute(source, output, parameters)
    except NotebookFailed as failed:
        if output.is_file():
            notebook = nbformat.read(output, as_version=4)
            said = nbformat.v4.new_markdown_cell(f"> **This run failed.** {failed}", metadata={"tags": ["failed"]})
            notebook.cells.insert(0, said)
            files.write_text(output, nbformat.writes(notebook) + "\n")
        raise


def _execute(source: Path, output: Path, parameters: dict[str, Any]) -> None:
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=_ThisPython())
    stopping = threading.Event()
    output.parent.mkdir(parents=True, exist_ok=True)

    def before_cell(**_: Any) -> None:
        # An idle kernel ignores interrupts; one that comes between two cells must not be lost.
        if stopping.is_set():
            raise NotebookFailed("interrupted")

    def work() -> None:
        try:
            papermill.execute_notebook(
                source,
                output,
                parameters=parameters,
                kernel_name="python3",
                progress_bar=False,
                stdout_file=_Indented(),
                cwd=project_root(),
                start_timeout=300,
                km=manager,
                on_cell_start=before_cell,
            )
        finally:
            if manager.has_kernel:
                asyncio.run(manager.shutdown_kernel(now=True))

    # nbclient answers Ctrl-C by shutting the kernel down. In a thread it leaves signals alone, and we can ask nicely.
    with _unwatched(), ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(work)
        try:
            future.result()
        except KeyboardInterrupt:
            print("    stopping; Ctrl-C again kills the kernel", flush=True)
            stopping.set()
            _signal_kernel(manager, signal.SIGINT)
            try:
                future.exception()
            except KeyboardInterrupt:
                _signal_kernel(manager, signal.SIGKILL)
            raise
        except papermill.PapermillExecutionError as error:
            if error.ename in ("KeyboardInterrupt", Interrupted.__name__):
                raise KeyboardInterrupt from error
            reason = error.evalue if error.ename == "CarbError" else f"{error.ename}: {error.evalue}"
            raise NotebookFailed(f"cell [{error.exec_count}] {' '.join(reason.split())}") from error
        except Exception as error:  # a dead kernel, a full disk: the next dataset must still have its turn
            raise NotebookFailed(one_line(error)) from error


@contextlib.contextmanager
def _unwatched() -> Iterator[None]:
    """Let a kernel started in here not think that it sits behind a JupyterLab page, even if we do ourselves."""
    kept = os.environ.pop("JPY_SESSION_NAME", None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ["JPY_SESSION_NAME"] = kept


def _signal_kernel(manager: AsyncKernelManager, which: signal.Signals) -> None:
    pid = getattr(manager.provisioner, "pid", None) if manager.has_kernel else None
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, which)


def render_html(executed: Path) -> Path:
    """Render an executed notebook, without its code, to a page beside it that needs no network; return the page."""
    notebook = as_read(executed)
    page = HTMLExporter(
        template_file="carblib.html.j2",
        extra_loaders=[jinja2.DictLoader({"carblib.html.j2": _OFFLINE_PAGE})],
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    text, _ = page.from_notebook_node(notebook, {"metadata": {"name": executed.stem}})
    target = executed.with_suffix(".html")
    files.write_text(target, text)
    return target


def as_read(executed: Path) -> nbformat.NotebookNode:
    """Read an executed notebook and leave out progress, which tells a reader nothing once the work is done."""
    notebook = nbformat.read(executed, as_version=4)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = without_progress(output.text)
        cell.outputs = [output for output in cell.outputs if output.get("text", "x").strip()]
    return notebook
