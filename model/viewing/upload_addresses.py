"""A repair of Streamlit: a file that is chosen while another upload ends must not get lost."""

from __future__ import annotations

import functools

from streamlit.runtime.forward_msg_queue import ForwardMsgQueue


def keep_upload_addresses() -> None:
    """Let Streamlit keep its answers to browsers that ask where to send a file.

    At the start of each run of the page, Streamlit 1.67 drops most messages that wait to be sent (`ForwardMsgQueue.clear`), and
    these answers with them. The end of an upload starts a run. Where the answer for the next file was waiting then, the browser
    waits for it forever, and the file never appears in its field. Mending it twice changes nothing.
    """
    clear = ForwardMsgQueue.clear
    if hasattr(clear, "__wrapped__"):
        return

    @functools.wraps(clear)
    def clear_but_addresses(
        self: ForwardMsgQueue, retain_lifecycle_msgs: bool = False, fragment_ids_this_run: list[str] | None = None
    ) -> None:
        waiting = list(self._queue) if retain_lifecycle_msgs else []
        clear(self, retain_lifecycle_msgs, fragment_ids_this_run)
        for message in waiting:
            if message.WhichOneof("type") == "file_urls_response" and not any(message is kept for kept in self._queue):
                self._queue.append(message)

    ForwardMsgQueue.clear = clear_but_addresses  # type: ignore[method-assign]
