"""The first signal is a wish, the second an order."""

import signal
import threading

import pytest

from mnistfast.engine.stop import Interrupted, StopRequest


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


def test_elsewhere_than_in_the_main_thread():
    entered = []

    def work():
        with StopRequest() as stop:
            entered.append(stop.signum)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [None]
