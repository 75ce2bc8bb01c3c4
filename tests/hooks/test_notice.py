"""Every source hears its cloud's notice, and nothing a metadata service does can hurt a training."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hooks.metadata_servers import AzureService, Ec2Service, GceService, Service, serving
from trainer_hooks.notice import metadata, sources
from trainer_hooks.notice.azure import Azure
from trainer_hooks.notice.ec2 import Ec2
from trainer_hooks.notice.file import NoticeFile
from trainer_hooks.notice.gce import Gce
from trainer_hooks.notice.listener import Heard, Listener, Source, period_seconds
from trainer_hooks.notice.signals import CalmWorker, Signals

pytestmark = pytest.mark.enable_socket
PATIENCE_SECONDS = 30


@pytest.fixture(autouse=True)
def _behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is there: whoever asks it fails."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")


def listen(source: Source) -> tuple[Listener, list[Heard], threading.Event]:
    heard: list[Heard] = []
    has_heard = threading.Event()

    def on_heard(one: Heard) -> None:
        heard.append(one)
        has_heard.set()

    listener = Listener([source], on_heard)
    listener.start()
    return listener, heard, has_heard


# --- EC2 ---


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def an_ec2(service: Service, *, ttl: int = 3600, clock: Callable[[], float] | None = None) -> Ec2:
    environ = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": service.url + "/"}
    return Ec2(environ, period_seconds=0.01, token_ttl_seconds=ttl, monotonic=clock or Clock())


def test_ec2_hears_nothing_until_the_notice_then_how_long_is_left() -> None:
    with serving(cloud := Ec2Service()) as service:
        source = an_ec2(service)
        assert source.poll() is None

        cloud.give_notice(120)

        heard = source.poll()
        assert heard is not None
        assert (heard.kind, heard.source) == ("preemption", "ec2")
        assert heard.seconds_left is not None
        assert 0 < heard.seconds_left <= 120


def test_ec2_takes_an_unreadable_notice_for_one() -> None:
    with serving(cloud := Ec2Service()) as service:
        cloud.documents["/latest/meta-data/spot/instance-action"] = "?"

        assert an_ec2(service).poll() == Heard(kind="preemption", source="ec2")


def test_ec2_tells_a_rebalance_from_a_preemption() -> None:
    with serving(cloud := Ec2Service()) as service:
        source = an_ec2(service)
        cloud.recommend_rebalance()
        assert source.poll() == Heard(kind="rebalance", source="ec2")

        cloud.give_notice(120)

        heard = source.poll()
        assert heard is not None
        assert heard.kind == "preemption"


def test_ec2_asks_for_one_token_and_renews_it_15_seconds_before_its_end() -> None:
    with serving(cloud := Ec2Service()) as service:
        clock = Clock()
        source = an_ec2(service, ttl=100, clock=clock)

        renewals = []
        for now in (0, 50, 84, 85, 86, 169, 170):
            clock.now = 1000.0 + now
            source.poll()
            renewals.append(len(cloud.tokens))

        assert renewals == [1, 1, 1, 2, 2, 2, 3]


def test_ec2_gets_a_new_token_when_the_old_one_is_refused() -> None:
    with serving(cloud := Ec2Service()) as service:
        source = an_ec2(service)
        source.poll()
        cloud.give_notice(60)

        cloud.expire()

        assert source.poll() is not None


def test_ec2_survives_a_burst_of_errors() -> None:
    with serving(cloud := Ec2Service()) as service:
        source = an_ec2(service)
        cloud.give_notice(60)
        service.errors = [500, 503, 429]

        for _ in range(3):
            with pytest.raises(OSError, match="answered"):
                source.poll()

        assert source.poll() is not None


def test_ec2_does_not_wait_for_a_service_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata.ask, "__kwdefaults__", {"method": "GET", "timeout_seconds": 0.2})
    with serving(cloud := Ec2Service()) as service:
        source = an_ec2(service)
        cloud.give_notice(60)
        service.is_hanging = True
        with pytest.raises(OSError, match="timed out"):
            source.poll()

        service.is_hanging = False

        assert source.poll() is not None


def test_ec2_has_a_time_out_of_two_seconds() -> None:
    assert (metadata.ask.__kwdefaults__ or {})["timeout_seconds"] == 2.0


# --- GCE ---


def a_gce(service: Service, *, wait_seconds: int = 20) -> Gce:
    host = service.url.removeprefix("http://")
    return Gce({"GCE_METADATA_HOST": host}, period_seconds=0.01, wait_seconds=wait_seconds)


def test_gce_hears_at_once_by_one_waiting_request() -> None:
    with serving(cloud := GceService()) as service:
        listener, heard, has_heard = listen(a_gce(service))
        while not any("wait_for_change" in request.query for request in service.requests):
            threading.Event().wait(0.005)

        cloud.preempt()

        assert has_heard.wait(PATIENCE_SECONDS)
        listener.stop()
    assert heard[0] == Heard(kind="preemption", source="gce")
    assert "wait_for_change" not in service.requests[0].query, "the first answer must not wait"
    assert service.requests[1].query == {"wait_for_change": "true", "last_etag": "a1", "timeout_sec": "20"}


def test_gce_that_was_preempted_before_the_first_question_says_so() -> None:
    with serving(cloud := GceService()) as service:
        cloud.preempt()

        assert a_gce(service).poll() == Heard(kind="preemption", source="gce")


def test_gce_asks_again_after_a_quiet_wait_and_after_errors() -> None:
    with serving(cloud := GceService()) as service:
        source = a_gce(service, wait_seconds=0)
        assert [source.poll() for _ in range(3)] == [None] * 3
        service.errors = [503]
        with pytest.raises(OSError, match="503"):
            source.poll()

        cloud.preempt()

        assert source.poll() is not None


# --- Azure ---


def an_azure(service: Service) -> Azure:
    return Azure({"LAUNCH_AZURE_METADATA_ENDPOINT": service.url}, period_seconds=0.01)


def test_azure_hears_its_own_preemption_only() -> None:
    with serving(cloud := AzureService()) as service:
        source = an_azure(service)
        assert source.poll() is None
        cloud.add("Reboot", vm="vm_0")
        cloud.add("Preempt", vm="vm_1")
        assert source.poll() is None

        cloud.add("Preempt", vm="vm_0")

        heard = source.poll()
        assert heard is not None
        assert (heard.kind, heard.source) == ("preemption", "azure")
        assert heard.seconds_left is not None
        assert 0 < heard.seconds_left <= 30


def test_azure_without_a_name_takes_every_preemption_for_its_own() -> None:
    with serving(cloud := AzureService(vm_name=None)) as service:
        cloud.add("Preempt", vm="vm_7", seconds=None)

        assert an_azure(service).poll() == Heard(kind="preemption", source="azure")


def test_azure_survives_errors_and_nonsense() -> None:
    with serving(cloud := AzureService()) as service:
        source = an_azure(service)
        service.errors = [500]
        with pytest.raises(OSError, match="500"):
            source.poll()
        cloud.events = [{"EventType": "Preempt"}]
        assert source.poll() is None

        cloud.add("Preempt", vm="vm_0")

        assert source.poll() is not None


# --- signals and files ---


@pytest.fixture
def _signals_restored() -> Iterator[None]:
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGUSR1)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals_restored")
def test_a_signal_is_a_notice() -> None:
    source = Signals()
    source.install()
    assert source.poll() is None

    os.kill(os.getpid(), signal.SIGUSR1)

    assert source.poll() == Heard(kind="preemption", source="signal")


@pytest.mark.usefixtures("_signals_restored")
def test_a_forked_worker_ignores_the_handler_it_inherited() -> None:
    called = []
    signal.signal(signal.SIGTERM, lambda *args: called.append(args))
    source = Signals()
    source.install()
    source._pid += 1  # as a child sees it

    os.kill(os.getpid(), signal.SIGTERM)

    assert source.poll() is None
    assert not called


@pytest.mark.usefixtures("_signals_restored")
def test_outside_the_main_thread_no_handler_is_set() -> None:
    before = signal.getsignal(signal.SIGTERM)
    source = Signals()
    thread = threading.Thread(target=lambda: (source.install(), source.uninstall()))
    thread.start()
    thread.join()

    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.usefixtures("_signals_restored")
def test_a_worker_lets_one_signal_pass_and_keeps_its_own_initialiser() -> None:
    started = []

    CalmWorker(started.append)(3)
    os.kill(os.getpid(), signal.SIGTERM)

    assert started == [3]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_file_is_a_notice(tmp_path: Path) -> None:
    source = NoticeFile(str(tmp_path / "notice"), period_seconds=1)
    assert source.poll() is None

    (tmp_path / "notice").touch()

    assert source.poll() == Heard(kind="preemption", source="file")


# --- listening ---


def test_a_failing_source_is_logged_once_and_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    class Moody:
        name = "moody"
        period_seconds = 0.001
        polls = 0

        def poll(self) -> Heard | None:
            self.polls += 1
            if self.polls < 5:
                raise RuntimeError("not today")
            return Heard(kind="preemption", source=self.name)

    with caplog.at_level(logging.WARNING):
        listener, heard, has_heard = listen(Moody())
        assert has_heard.wait(PATIENCE_SECONDS)
        listener.stop()

    assert len(caplog.records) == 1
    assert len(heard) == 1


def test_each_kind_of_news_is_passed_on_once() -> None:
    class Repeating:
        name = "repeating"
        period_seconds = 0.001
        polls = 0

        def poll(self) -> Heard | None:
            self.polls += 1
            return Heard(kind="rebalance" if self.polls < 5 else "preemption", source=self.name)

    source = Repeating()
    listener, heard, _ = listen(source)
    while source.polls < 20:
        threading.Event().wait(0.002)
    listener.stop()

    assert [one.kind for one in heard] == ["rebalance", "preemption"]


@pytest.mark.parametrize(("notice", "expected"), [(120, 5.0), (24, 1.0), (0.5, 0.1), (0, 0.1), (1e6, 5.0), (None, 5.0)])
def test_the_period_follows_the_notice(notice: float | None, expected: float) -> None:
    assert period_seconds(notice) == expected


def test_sources_are_opened_by_name_and_wrong_ones_left_out(caplog: pytest.LogCaptureFixture) -> None:
    names = ("ec2", "gce", "azure", "signal", "file", "oracle", "ec2")
    environ = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://[fd00:ec2::254]", "GCE_METADATA_HOST": "ftp://x"}

    found = sources.open_sources(names, notice_seconds=30, environ=environ)

    assert [source.name for source in found] == ["ec2", "azure", "signal"]
    assert [record.__dict__["source"] for record in caplog.records] == ["gce", "file", "oracle"]


@pytest.mark.parametrize(
    ("vendor", "expected"),
    [("Amazon EC2\n", ("ec2", "signal")), ("Google", ("gce", "signal")), ("QEMU", ("signal",)), (None, ("signal",))],
)
def test_the_cloud_is_known_by_its_firmware(
    vendor: str | None, expected: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if vendor is not None:
        (tmp_path / "vendor").write_text(vendor)
    monkeypatch.setattr(sources, "_VENDOR", tmp_path / "vendor")

    assert sources.default_names() == expected


def test_nobody_at_the_address_is_an_os_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"

        with pytest.raises(OSError, match="refused"):
            metadata.ask(url, headers={})


def test_a_service_that_speaks_no_http_is_an_os_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak() -> None:
            with server.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(b"220 smtp ready\r\n")

        thread = threading.Thread(target=speak)
        thread.start()
        with pytest.raises(OSError, match="did not answer in HTTP"):
            metadata.ask(f"http://127.0.0.1:{server.getsockname()[1]}", headers={})
        thread.join()
