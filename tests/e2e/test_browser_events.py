"""The progress of a campaign as a real browser's EventSource gets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bitel.client import Client
from bitel.demo.stage import Stage
from tests.e2e.campaigns import finish
from tests.support.browser import browser
from tests.support.prerequisites import need_peer
from tests.support.service_calls import upload

CALLS = 12

# Resolves with all events of a campaign, and with what the browser does after the last one: it
# connects again by itself, is answered 204, and gives up (readyState 2 is CLOSED).
FOLLOW = """
new Promise((resolve, reject) => {
  const source = new EventSource(%s);
  const events = [];
  const keep = (event) => events.push(
    {name: event.type, id: event.lastEventId, data: JSON.parse(event.data)});
  source.addEventListener("progress", keep);
  source.addEventListener("finished", keep);
  let opened = 0;
  source.onopen = () => { opened += 1; };
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) { resolve({events, opened}); }
  };
})
"""


def test_a_page_follows_a_campaign_to_its_end(tmp_path: Path) -> None:
    need_peer(shutil.which("chromium") is not None, "chromium is not installed")
    rules = ("*[0-7]=answer:after=0.3:hangup=0.6", "*=busy")
    with Stage(tmp_path, rules=rules, record=False, dialer={"max_channels": 3}) as stage:
        stage.start_phone()
        stage.start_service()
        project = stage.command("project", "create", "acme")
        token = stage.command("token", "create", project)
        with browser() as page:
            page.open(f"{stage.url}/healthz")
            with Client(token, stage.url) as client:
                voice = upload(stage, client, 1.0)
                numbers = [f"0912000{n:04}" for n in range(CALLS)]
                campaign = client.batch(numbers, voice, retry_count=0)["campaignId"]
            path = f"/api/v2/voice/campaign/{campaign}/events?access_token={token}"
            seen = page.run(FOLLOW % json.dumps(path))
        calls = finish(stage, token, campaign, 30.0)
        assert stage.stop_service() == 0
        log = stage.service_log.read_text()
    *progress, last = seen["events"]
    assert {event["name"] for event in progress} == {"progress"}
    assert len(progress) > 2
    waiting = [event["data"]["byStatus"]["WAITING"] for event in progress]
    assert waiting == sorted(waiting, reverse=True)
    assert waiting[-1] == 0
    assert len({event["id"] for event in progress}) == len(progress)
    assert (last["name"], last["id"]) == ("finished", "finished")
    assert last["data"]["state"] == "FINISHED"
    ended = {call["status"] for call in calls}
    assert {name for name, count in last["data"]["byStatus"].items() if count} == ended
    assert seen["opened"] == 1
    assert token not in log
