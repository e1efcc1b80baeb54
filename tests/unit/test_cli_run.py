# SPDX-License-Identifier: Apache-2.0
"""The loop: what is fed, when it is shown, how it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence

import pytest
from cli_fakes import FakeAnalysis, FakeSession, FakeWriter

from tracer.cli.run import Ending, ending_by_signal, replay, run
from tracer.model.summary import Summary
from tracer.views.base import Action


class FakeView:
    """Presses the given keys, one list per batch."""

    refresh_s = 10.0

    def __init__(self, *presses: Sequence[Action]) -> None:
        self._presses = list(presses)
        self.shown: list[int] = []

    def __enter__(self) -> FakeView:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def poll(self) -> Sequence[Action]:
        return self._presses.pop(0) if self._presses else ()

    def show(self, summary: Summary) -> None:
        self.shown.append(summary.records.total)

    def finish(self, summary: Summary, extra: Mapping[str, object]) -> None:
        return None


class Clock:
    """Time that passes by a step at each look."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self._step = step

    def __call__(self) -> float:
        self.now += self._step
        return self.now


def test_every_batch_is_written_and_analysed_and_the_last_summary_has_them_all() -> None:
    analysis, writer = FakeAnalysis(), FakeWriter()
    summary = run(FakeSession(6), analysis, FakeView(), ending=Ending(), writer=writer)
    assert (analysis.fed, writer.batches, summary.records.total) == (7, 7, 7)
    assert analysis.finished


def test_the_first_summary_is_shown_with_the_first_batch_and_others_when_due() -> None:
    view = FakeView()
    run(FakeSession(20), FakeAnalysis(), view, ending=Ending(), clock=Clock(2.0))
    assert view.shown[0] == 1
    assert 1 < len(view.shown) < 20


def test_a_slow_view_is_shown_less_often() -> None:
    quick, slow = FakeView(), FakeView()
    quick.refresh_s = slow.refresh_s = 0.001
    run(FakeSession(50), FakeAnalysis(), quick, ending=Ending(), clock=Clock(0.01), cpu=Clock(0.0))
    run(FakeSession(50), FakeAnalysis(), slow, ending=Ending(), clock=Clock(0.01), cpu=Clock(0.01))
    assert len(quick.shown) == 51
    assert 1 < len(slow.shown) * 5 <= 51


def test_nothing_is_due_while_no_time_passes() -> None:
    view = FakeView()
    run(FakeSession(50), FakeAnalysis(), view, ending=Ending(), clock=Clock(0.0))
    assert view.shown == [1]


def test_however_much_there_is_to_show_the_screen_moves() -> None:
    view = FakeView()
    view.refresh_s = 0.001
    run(FakeSession(50), FakeAnalysis(), view, ending=Ending(), clock=Clock(1.0), cpu=Clock(60.0))
    assert len(view.shown) > 20


def test_q_stops_the_source_in_order_and_what_it_still_yields_is_analysed() -> None:
    session, analysis = FakeSession(None), FakeAnalysis()
    run(session, analysis, FakeView((), (), (Action.QUIT,)), ending=Ending(), stop=session.stop)
    assert session.log == ["stopped"]
    assert analysis.fed == 4
    assert analysis.finished


def test_the_duration_ends_it() -> None:
    session = FakeSession(None)
    run(
        session,
        FakeAnalysis(),
        FakeView(),
        ending=Ending(),
        stop=session.stop,
        duration_s=5,
        clock=Clock(1.0),
    )
    assert session.log == ["stopped"]


def test_r_resets_and_shows_the_result_at_once() -> None:
    view, analysis = FakeView((), (), (Action.RESET,)), FakeAnalysis()
    run(FakeSession(5), analysis, view, ending=Ending(), clock=Clock(0.0))
    assert analysis.resets == 1
    assert view.shown == [1, 3]


def test_words_are_sent_when_they_change_and_withdrawn_when_they_go(monkeypatch: pytest.MonkeyPatch) -> None:
    session, analysis = FakeSession(6), FakeAnalysis()
    words: list[dict[int, tuple[int, ...]]] = [{}, {7: (16,)}, {7: (16,)}, {7: (16, 32), 8: (64,)}]
    wanted = iter([*words, {8: (64,)}, {8: (64,)}, {8: (64,)}])
    monkeypatch.setattr(analysis, "words_to_watch", lambda: next(wanted))
    run(session, analysis, FakeView(), ending=Ending(), watch=session.watch)
    assert session.watched == [(7, (16,)), (7, (16, 32)), (8, (64,)), (7, ())]


def test_processes_in_which_guests_run_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([[], [(7, 9)], []])
    analysis, joined = FakeAnalysis(), []
    monkeypatch.setattr(analysis, "guests_to_join", lambda: next(found, []))
    run(FakeSession(3), analysis, FakeView(), ending=Ending(), join=lambda *pair: joined.append(pair))
    assert joined == [(7, 9)]


def test_a_caller_may_wind_down_before_the_end() -> None:
    session, analysis = FakeSession(None), FakeAnalysis()
    asked: list[bool] = []

    def may_end(wanted: bool) -> bool:
        asked.append(wanted)
        return len(asked) == 5

    run(session, analysis, FakeView((), (Action.QUIT,)), ending=Ending(), stop=session.stop, may_end=may_end)
    assert asked == [False, True, True, True, True]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_ask_for_the_end_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with ending_by_signal() as ending:
        assert not ending.requested
        os.kill(os.getpid(), number)
        assert ending.requested
    assert signal.getsignal(number) is before


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_by_signal() as ending:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not ending.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_ctrl_c_does_not_wait_for_order() -> None:
    with ending_by_signal():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_replay_analyses_everything() -> None:
    assert replay(FakeSession(9), FakeAnalysis()).records.total == 10
