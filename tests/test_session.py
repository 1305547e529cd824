"""Reading the events of a profiling session, from made-up events."""

from dataclasses import dataclass
from types import SimpleNamespace

from torch.autograd import DeviceType

from llm_profile.timing.session import PASS_RANGE, ROW_RANGE, Events
from llm_profile.timing.trace import Kernel, Launch, Range, Trace

HOST, DEVICE = DeviceType.CPU, DeviceType.CUDA


@dataclass(frozen=True)
class Event:
    """An event with the methods of those of torch's profiler."""

    text: str
    device: DeviceType
    start: int
    duration: int = 5
    correlation: int = 0
    annotation: bool = False

    def name(self) -> str:
        return self.text

    def device_type(self) -> DeviceType:
        return self.device

    def start_ns(self) -> int:
        return self.start

    def duration_ns(self) -> int:
        return self.duration

    def correlation_id(self) -> int:
        return self.correlation

    def is_user_annotation(self) -> bool:
        return self.annotation


def read(*events: Event) -> Trace:
    session = Events()
    session.keep(SimpleNamespace(events=lambda: list(events)))
    return session.read()


def test_each_event_to_its_kind() -> None:
    found = read(
        Event(f"{PASS_RANGE}:7", HOST, 0, 100),
        Event(f"{ROW_RANGE}q_proj", HOST, 10, 20),
        Event("cudaLaunchKernel", HOST, 12, correlation=1),
        Event("cudaGraphLaunch", HOST, 50, correlation=2),
        Event("cuLaunchKernelEx", HOST, 60, correlation=3),
        Event("Buffer Flush", HOST, 70),
        Event("gemm", DEVICE, 1012, 30, correlation=1),
        Event("Memset (Device)", DEVICE, 1050, 2, correlation=2),
        Event("gemm", DEVICE, 1060, 31, correlation=3),
    )
    assert found.passes == [Range("7", 0, 100)]
    assert found.rows == [Range("q_proj", 10, 30)]
    assert [launch.correlation for launch in found.launches] == [1, 2, 3]
    assert found.launches[0] == Launch(1, 12, "cudaLaunchKernel")
    gemms = [Kernel(1, 1012, 30, "gemm"), Kernel(3, 1060, 31, "gemm")]
    assert [k for k in found.kernels if k.name == "gemm"] == gemms
    assert Kernel(2, 1050, 2, "Memset (Device)") in found.kernels and len(found.kernels) == 3


def test_ranges_that_show_on_the_device_too_are_no_kernels() -> None:
    found = read(
        Event(f"{ROW_RANGE}q_proj", DEVICE, 1000, annotation=True),
        Event(f"{PASS_RANGE}:0", DEVICE, 1000, annotation=True),
        Event("a range of the model's own", DEVICE, 1000, annotation=True),
        Event("a range of the model's own", HOST, 5),
        Event(f"{ROW_RANGE}q_proj", HOST, 5),
    )
    assert found == Trace([], [Range("q_proj", 5, 10)], [], [])


def test_a_session_without_events_is_an_empty_trace() -> None:
    assert read() == Trace()
