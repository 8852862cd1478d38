"""The dashboard under Textual's pilot."""

import asyncio
import time

from collie.tui import Dashboard

SIZES = [(80, 24), (120, 40), (200, 60)]


def watch(root, scenario, size=(80, 24)):
    """Run `scenario(pilot, see)` on a dashboard; `see(text)` waits until the text is on the screen."""

    async def main():
        app = Dashboard(root, interval=0.05)
        async with app.run_test(size=size, notifications=True) as pilot:

            async def see(*texts, seconds=20.0):
                deadline = time.monotonic() + seconds
                while not all(text in screen(app) for text in texts):
                    assert time.monotonic() < deadline, f"{texts} not on the screen:\n{screen(app)}"
                    await pilot.pause(0.02)

            await scenario(pilot, see)
        return app

    return asyncio.run(main())


def screen(app):
    """The text on the screen, line by line, with what stands over it."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)
