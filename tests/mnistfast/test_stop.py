"""The first signal is a wish, the second an order."""

import signal
import threading

import pytest

from mnistfast.stop import Interrupted, StopRequest


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_first_and_second(signum):
    before = signal.getsignal(signum)
    with StopRequest() as stop:
        assert stop.signum is None
        signal.raise_signal(signum)
        assert stop.signum == signum
        with pytest.raises(Interrupted) as caught:
            signal.raise_signal(signum)
        assert caught.value.signum == signum
    assert signal.getsignal(signum) is before


@pytest.fixture
def heeded_hangup():
    """The system's own answer to SIGHUP, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heeded_hangup")
def test_a_second_hangup_is_no_news():
    """A shell passes on what the system has sent to its children too."""
    with StopRequest() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGHUP)
        assert stop.signum == signal.SIGHUP
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with StopRequest():
        pass
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


@pytest.mark.usefixtures("heeded_hangup")
def test_under_nohup_nothing_stops():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
    assert stop.signum is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_elsewhere_than_in_the_main_thread():
    entered = []

    def work():
        with StopRequest() as stop:
            entered.append(stop.signum)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [None]
