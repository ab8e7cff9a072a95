"""A file that is chosen while another upload ends does not get lost."""

from __future__ import annotations

import pytest
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.runtime.forward_msg_queue import ForwardMsgQueue

from model.viewing.upload_addresses import keep_upload_addresses


def sent_after_a_run_starts() -> list[str]:
    """What is left of the answer to an upload and of a message of the last run, both waiting, when the next run starts."""
    queue = ForwardMsgQueue()
    answer, old = ForwardMsg(), ForwardMsg()
    answer.file_urls_response.response_id = "mask"
    old.page_config_changed.title = "of the run before"
    for message in (answer, old):
        queue.enqueue(message)
    queue.clear(retain_lifecycle_msgs=True)  # as `AppSession` does at the start of a run
    sent = [str(message.WhichOneof("type")) for message in queue.flush()]
    assert not queue.flush(), "nothing is sent twice"
    return sent


def test_where_a_file_is_to_be_sent_is_told_although_a_run_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    clear = ForwardMsgQueue.clear
    monkeypatch.setattr(ForwardMsgQueue, "clear", getattr(clear, "__wrapped__", clear))
    assert sent_after_a_run_starts() == [], "Streamlit has mended this: the repair can go"
    keep_upload_addresses()
    keep_upload_addresses()
    assert sent_after_a_run_starts() == ["file_urls_response"]
