"""Processes of Python that begin with the libraries imported: forks of a process that has imported them once.

To import torch and transformers takes seconds of a processor, and many tests start a process. One that is started here
has an id, folder, environment, streams and signals of its own and is a child of the test's process, as by `subprocess`;
manytune's modules it imports itself. Where the start is what is tested, use `subprocess`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import inspect
import io
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import types
import warnings
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["ForkedProcess", "run_forked"]

_LIBRARIES = (
    *("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.fx.experimental.symbolic_shapes"),
    *("scipy.optimize", "scipy.stats", "sklearn.feature_extraction.text", "sklearn.linear_model", "pyarrow.parquet"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "pydantic", "typer"),
)
"""What takes long to import, and reads nothing of the environment that tests change."""
_HUB_LIBRARIES = ("transformers.modeling_utils", "transformers.models.bert.modeling_bert", "accelerate", "peft")
"""They read the hub's variables when they are imported: for a process that has these as the tests have them."""

_OF_THE_HUB = ("HF_", "TRANSFORMERS_", "TOKENIZERS_", "HUGGING")
_OF_A_START = ("PYTHON", "LC_", "LANG", "LD_", "OMP_", "GOMP_", "ATEN_", "ONEDNN_", "DNNL_", "TORCH_", "MALLOC_", "MPL")
"""What Python and libraries read at their start: with other values than the tests have, a process is a fresh one."""
_HARMLESS = {"PYTHONPATH", "PYTHONBREAKPOINT"}  # the one is heeded by a fork, the other is set by Ray
_ENVIRONMENT = dict(os.environ)

_SCRIPT = str(Path(sys.executable).with_name("manytune"))
_SET_CHILD_SUBREAPER = 36


_Popen = subprocess.Popen  # tests may put ForkedProcess in its place


class ForkedProcess(subprocess.Popen[Any]):
    """`subprocess.Popen`, with a fork in the place of a fresh process where the command is Python's, on Linux."""

    def _execute_child(self, *given: Any) -> None:
        call = inspect.signature(_Popen._execute_child).bind(self, *given).arguments  # type: ignore[attr-defined]
        command = call["args"]
        words = [command] if isinstance(command, str | bytes | os.PathLike) else [os.fsdecode(word) for word in command]
        environment = dict(os.environ if call["env"] is None else call["env"])
        libraries = _libraries_for(environment)
        if sys.platform != "linux" or words[0] not in (sys.executable, _SCRIPT) or libraries is None:
            super()._execute_child(*given)  # type: ignore[misc]
            return
        streams = enumerate((call["p2cread"], call["c2pwrite"], call["errwrite"]))
        handles = {number: number if stream == -1 else stream for number, stream in streams}
        handles |= {number: number for number in call["pass_fds"]}
        request = {
            "words": words,
            "environment": environment,
            "folder": os.path.abspath(call["cwd"] or os.getcwd()),
            "session": call["start_new_session"],
            "handles": list(handles),
        }
        self.pid = _Server.of(libraries).fork(request, list(handles.values()))
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(call[pipe] for pipe in pipes))  # type: ignore[attr-defined]


def run_forked(command: Any, *, input: str | None = None, check: bool = False, **named: Any) -> Any:
    """`subprocess.run` with a ForkedProcess, of which it captures the output as text."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    if input is not None:
        pipes["stdin"] = subprocess.PIPE
    with ForkedProcess([*map(str, command)], **(pipes | named)) as process:
        out, err = process.communicate(input, timeout=600)
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def _libraries_for(environment: dict[str, str]) -> tuple[str, ...] | None:
    """What a process with this environment may find imported; None if it must be a fresh one."""
    changed = {name for name, _ in environment.items() ^ _ENVIRONMENT.items()} - _HARMLESS
    if any(name.startswith(_OF_A_START) for name in changed) or environment.get("MKL_NUM_THREADS", "1") != "1":
        return None
    return _LIBRARIES if any(name.startswith(_OF_THE_HUB) for name in changed) else _LIBRARIES + _HUB_LIBRARIES


class _Server:
    """The process that has imported the libraries; it ends with the test's process."""

    def __init__(self, libraries: tuple[str, ...]) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair()
        with theirs, open(os.devnull) as nothing:
            number = theirs.fileno()
            if libraries == _LIBRARIES:
                command = [sys.executable, __file__, str(number), *libraries]
                self._process = _Popen(command, pass_fds=[number], stdin=nothing, env=_ENVIRONMENT)
            else:  # it begins as a fork of the one that has imported most of them
                request = {
                    "words": [sys.executable, __file__, str(number), *libraries[len(_LIBRARIES) :]],
                    "environment": _ENVIRONMENT,
                    "folder": os.getcwd(),
                    "session": False,
                    "handles": [0, 1, 2, number],
                }
                _Server.of(_LIBRARIES).fork(request, [nothing.fileno(), 1, 2, number])

    @staticmethod
    @cache
    def of(libraries: tuple[str, ...]) -> _Server:
        return _Server(libraries)

    def fork(self, request: dict[str, Any], handles: list[int]) -> int:
        """The id of a new process, a child of this one, with these handles under the numbers that the request has."""
        content = json.dumps(request).encode()
        with self._lock, _adopting_orphans():
            socket.send_fds(self._socket, [len(content).to_bytes(8)], handles)
            self._socket.sendall(content)
            number = int.from_bytes(_received(self._socket, 8))
            _received(self._socket, 1)  # its parent has ended
            return number


@contextlib.contextmanager
def _adopting_orphans() -> Any:
    """A fork's parent ends at once; meanwhile this process takes its place, so that it can wait for the fork."""
    control = ctypes.CDLL(None, use_errno=True).prctl
    assert control(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        control(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _received(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = connection.recv(size - len(content))
        if not part:
            raise EOFError
        content += part
    return content


def _serve(connection: socket.socket) -> list[str]:
    """Fork as long as somebody asks for it; returns in the forks alone, with the command."""
    gc.collect()
    gc.freeze()
    while True:
        try:
            size, handles, *_ = socket.recv_fds(connection, 8, 64)
            request = json.loads(_received(connection, int.from_bytes(size or _received(connection, 8))))  # or EOFError
        except EOFError:
            sys.exit()
        if (between := os.fork()) == 0:
            if child := os.fork():
                connection.sendall(child.to_bytes(8))
                os._exit(0)
            connection.close()
            return _become(request, handles)
        os.waitpid(between, 0)
        connection.sendall(b"!")
        for handle in handles:
            os.close(handle)


def _become(request: dict[str, Any], handles: list[int]) -> list[str]:
    """Take the session, folder, environment and handles that were asked for; returns the command."""
    high = [fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, 500) for handle in handles]
    for handle in handles:
        os.close(handle)
    for handle, number in zip(high, request["handles"], strict=True):
        os.dup2(handle, number)
        os.close(handle)
    if request["session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        setattr(sys, name, _stream(number, getattr(sys, name)))
    return list(request["words"])


def _stream(number: int, like: io.TextIOWrapper) -> io.TextIOWrapper:
    """A standard stream as Python opens it: whether one can be sought in is looked at when it is opened."""
    buffering = 0 if number and like.write_through else -1
    binary: Any = os.fdopen(number, "wb" if number else "rb", buffering, closefd=False)
    line_buffering = number == 2 or (number == 1 and binary.isatty())
    settings: dict[str, Any] = {"line_buffering": line_buffering, "write_through": like.write_through}
    return io.TextIOWrapper(binary, like.encoding, like.errors, **settings)


def _run(words: list[str]) -> None:
    """What Python does with its command line."""
    os.fsync = lambda handle: None  # type: ignore[assignment]  # as in the tests themselves
    program, *words = words
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if program == _SCRIPT:
        words = [program, *words]
    while words[0] == "-W":
        warnings.simplefilter(words[1])  # type: ignore[arg-type]
        words = words[2:]
    if words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], ""
        exec(compile(words[1], "<string>", "exec"), vars(main))
    elif words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


def _end(code: int) -> None:
    """End as Python does, but for taking thousands of imported modules apart, which takes longer than most tests."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            return  # Python says so, and its exit code is 120
    os._exit(code)


if __name__ == "__main__":
    for _library in sys.argv[2:]:
        importlib.import_module(_library)
    assert threading.active_count() == 1, "a fork would lack the other threads"
    _command = _serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        _run(_command)
    except SystemExit as _stop:
        if not isinstance(_stop.code, int | None):
            raise
        _end(_stop.code or 0)
    _end(0)
