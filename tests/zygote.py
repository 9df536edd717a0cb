"""A process that has torch, transformers and hglmm loaded, and runs notebooks in children of its own: each is a fresh process, and none waits for the imports.

`Zygote()` starts it; `.run(words)` is one run. As a program it reads a line of JSON a run and answers with one.

    test PATH                    a notebook that is a test, as nbdev_test runs it
    papermill NOTEBOOK OUT ...   a program under papermill, its cells run in the child itself instead of a kernel
    python -m MODULE ...         a program of this Python, or `python -c CODE ...`
    ranks N FUNCTION ...         a function of tests/ranks.py in N processes that can talk to each other, as torchrun would start them
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRELOADED = (
    "torch", "transformers.models.llava.modeling_llava", "transformers.models.sam.modeling_sam", "accelerate", "matplotlib.pyplot", "nbdev.test", "papermill.cli",
    "IPython.core.display", "tensorboard.compat", "torch.utils.tensorboard", "hglmm.grounder", "hglmm.lmm.llava", "hglmm.lmm.deepseek_vl", "hglmm.runs.training", "hglmm.runs.workers", "hglmm.runs.launcher",
)  # fmt: skip


class Zygote:
    "The other end of the pipe. One run at a time."

    def __init__(self, **options):
        self.lock, self.options, self.process = threading.Lock(), options, None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, **self.options)

    def run(self, *words: str, timeout: int = 600, cwd: Path = ROOT, environment: dict[str, str] | None = None) -> tuple[int, str]:
        "Exit status (negative: the signal that ended it) and all it said."
        with self.lock, tempfile.NamedTemporaryFile("r", errors="replace") as log:
            order = {"words": words, "log": log.name, "timeout": timeout, "cwd": str(cwd), "environment": dict(os.environ if environment is None else environment)}
            answer = ""
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write(json.dumps(order) + "\n")
                self.process.stdin.flush()
                answer = self.process.stdout.readline()
            if answer:
                return json.loads(answer), log.read()
            self.close()  # it is gone; the next run finds a new one
            self.start()
            return -1, log.read() + "\nthe process that runs notebooks ended; out of memory?"

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def narrow_recipes() -> None:
    "Make toy_llava's head one on which a training step takes a quarter of the time."
    from hglmm import recipes

    widths = dict(text_width=12, level_widths=(8, 8, 12), dynamic_width=4, detail_width=8, attention_width=8, fused_width=8, width=8, output_width=4)
    recipes.RECIPES["toy_llava"] = recipes.replace("toy_llava", **{f"sizes__{name}": value for name, value in widths.items()})


# --- in the child


def become(words: list[str], environment: dict[str, str], kept: tuple[int, ...]) -> None:
    "Run `python WORDS` right here and end, as if this process had been started with it."
    import runpy
    import signal
    import traceback

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for fd in sorted(set(range(3, 1024)) - set(kept)):
        with contextlib.suppress(OSError):
            os.close(fd)
    os.environ.clear()
    os.environ.update(environment)
    as_many_threads()
    sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), open(1, "w", buffering=1, closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    status = 1
    try:
        sys.argv = words[1:]
        if words[0] == "-c":
            exec(words[1], {"__name__": "__main__"})
        else:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


BORN = {name: os.environ.get(name) for name in ("PYTHONPATH", "MALLOC_MMAP_THRESHOLD_")}  # what is read when a process starts


def as_many_threads() -> None:
    "torch reads the number of its threads when it is loaded, which was before the fork."
    if (told := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(told))


def inherit_imports() -> None:
    "Processes of this one's Python that are started from here on are forks of it: what is loaded need not be loaded again."
    from functools import partial

    class Forked(subprocess.Popen):
        def __init__(self, args, *more, env=None, pass_fds=(), preexec_fn=None, **options):
            environment = dict(os.environ if env is None else env)
            words = [word for word in args[1:] if word != "-u"] if isinstance(args, list | tuple) else []
            ours = words and args[0] == sys.executable and words[0] in ("-m", "-c") and preexec_fn is None
            if ours and all(environment.get(name) == value for name, value in BORN.items()):
                preexec_fn = partial(become, words, environment, tuple(pass_fds))
            super().__init__(args, *more, env=env, pass_fds=pass_fds, preexec_fn=preexec_fn, **options)

    plain = subprocess.Popen
    for module in list(sys.modules.values()):
        if getattr(module, "Popen", None) is plain:
            module.Popen = Forked


def test(path: str) -> bool:
    "What nbdev_test does to one notebook, with settings.ini read for the flags."
    from nbdev.config import get_config
    from nbdev.test import test_nb

    return test_nb(Path(path), skip_flags=get_config().tst_flags.split(), basepath=get_config().config_path)[0]


def in_process() -> None:
    "Teach papermill to run cells right here."
    from execnb.shell import CaptureShell
    from nbformat.v4 import output_from_msg
    from papermill.engines import Engine, papermill_engines

    class Here(Engine):
        @classmethod
        def execute_managed_notebook(cls, manager, kernel_name, log_output=False, **options):
            shell = CaptureShell(mpl_format="png")  # figures once, as a kernel shows them
            history = shell.user_ns["In"] = [""]
            manager.notebook_start()
            for k, cell in enumerate(manager.nb.cells):
                manager.cell_start(cell, k)
                if cell.cell_type == "code":
                    history.append(cell.source)
                    cell["idx_"] = k  # execnb names cells by it
                    shell.cell(cell)
                    del cell["idx_"]
                    cell.outputs = [out if isinstance(out, dict) else output_from_msg(out) for out in cell.outputs]
                    for out in cell.outputs:
                        print("".join(out.get("text", [])) or "".join(out.get("data", {}).get("text/plain", [])) or "\n".join(out.get("traceback", [])), flush=True)
                    if shell.exc:
                        manager.cell_exception(cell, k, exception=shell.exc)
                        break
                manager.cell_complete(cell, k)
            manager.notebook_complete()

    papermill_engines.register("here", Here)


def program(words: list[str]) -> bool:
    "papermill's command line."
    from papermill.cli import papermill

    in_process()
    papermill.main([*words, "--engine", "here"], standalone_mode=False)
    return True


def ranks(count: str, function: str, *words: str) -> bool:
    "Fork as often as asked; did all end well?"
    import socket
    import traceback

    import ranks

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(int(count)):
        process = os.fork()
        if not process:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            status = 1
            try:
                getattr(ranks, function)(*words)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(status)
        processes.append(process)
    return not any([os.waitpid(process, 0)[1] for process in processes])


def child(order: dict) -> bool:
    "One run."
    import signal

    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(order["environment"])
    as_many_threads()
    os.chdir(order["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where tests run in the background of a shell
    inherit_imports()
    if "NARROW_HEADS" in os.environ:
        narrow_recipes()
    exec(os.environ.get("FIRST", ""), {})  # of a test: a fault, for this process and what it starts
    signal.alarm(order["timeout"])
    kind, *words = order["words"]
    return {"test": lambda: test(*words), "papermill": lambda: program(words), "python": lambda: become(words, dict(os.environ), ()), "ranks": lambda: ranks(*words)}[kind]()


def main() -> None:
    "Fork for each line."
    import importlib
    import traceback

    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        process = os.fork()
        if not process:
            good = False
            try:
                good = child(json.loads(line))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(0 if good else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
