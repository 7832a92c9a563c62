"""Time that passes only while everybody waits."""

import asyncio
import time

import pytest

from learning_at_home.testing.virtual_time import START_S, LoopClock, Stalled, run_in_virtual_time


def test_an_hour_passes_at_once_and_in_order():
    seen: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((name, asyncio.get_running_loop().time() - START_S))

    async def main() -> None:
        await asyncio.gather(sleeper("late", 3_600.0), sleeper("early", 0.5))

    started = time.monotonic()
    run_in_virtual_time(main())

    assert [name for name, _ in seen] == ["early", "late"]
    assert [seconds for _, seconds in seen] == pytest.approx([0.5, 3_600.0])
    assert time.monotonic() - started < 5.0


def test_timeouts_and_the_clock_follow_the_loop():
    async def main() -> None:
        clock = LoopClock(asyncio.get_running_loop(), offset_s=-5.0)
        monotonic_s, wall_s = clock.monotonic_s(), clock.wall_s()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(7.0):
                await asyncio.Event().wait()
        assert clock.monotonic_s() - monotonic_s == pytest.approx(7.0)
        assert clock.wall_s() - wall_s == pytest.approx(7.0)
        clock.offset_s += 100.0
        assert clock.wall_s() - wall_s == pytest.approx(107.0)

    run_in_virtual_time(main())


def test_waiting_for_what_cannot_come_is_an_error_instead_of_a_hang():
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stalled):
        run_in_virtual_time(main())


def test_there_are_no_sockets_without_a_network():
    async def main() -> None:
        with pytest.raises(NotImplementedError):
            await asyncio.get_running_loop().create_datagram_endpoint(
                asyncio.DatagramProtocol, local_addr=("20.0.0.1", 1)
            )

    run_in_virtual_time(main())


def test_two_that_look_at_the_time_by_turns_do_not_hold_it_up():
    looks = 0

    async def wait_until(moment: float) -> None:
        nonlocal looks
        loop = asyncio.get_running_loop()
        while loop.time() < moment:
            looks += 1
            assert looks < 1_000, "time does not pass"
            event = asyncio.Event()
            loop.call_later(moment - loop.time(), event.set)
            await event.wait()

    async def main() -> None:
        moment = asyncio.get_running_loop().time() + 2e-11  # nearer than the resolution of the system's clock
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(wait_until(moment))
            await asyncio.sleep(0)
            tasks.create_task(wait_until(moment))

    run_in_virtual_time(main())

    assert looks == 2
