"""Names of the operations in the OpenAPI document, by which generated clients call their methods.

They are part of the API: a name that has been published stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

OPERATION_IDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "POST /api/v2/voice/single": "placeSingleCall",
        "POST /api/v2/voice/batch": "placeBatch",
        "POST /api/v2/voice/otp": "placeOneTimePassword",
        "POST /api/v2/voice/single/tts": "placeSingleSpokenCall",
        "POST /api/v2/voice/batch/tts": "placeSpokenBatch",
        "GET /api/v2/voice/status/{call_id}": "getCall",
        "GET /api/v2/voice/calls/{call_id}": "getCallDetails",
        "GET /api/v2/voice/calls": "listCalls",
        "DELETE /api/v2/voice/{call_id}": "cancelCall",
        "GET /api/v2/voice/campaign/{campaign_id}": "getCampaign",
        "PATCH /api/v2/voice/campaign/{campaign_id}": "changeCampaign",
        "DELETE /api/v2/voice/campaign/{campaign_id}": "cancelCampaign",
        "POST /api/v2/voice/campaign/{campaign_id}/pause": "pauseCampaign",
        "POST /api/v2/voice/campaign/{campaign_id}/resume": "resumeCampaign",
        "GET /api/v2/voice/campaign/{campaign_id}/calls": "listCampaignCalls",
        "GET /api/v2/voice/campaign/{campaign_id}/events": "streamCampaignEvents",
        "GET /api/v2/voice/campaign/{campaign_id}/results.csv": "downloadCampaignResults",
        "GET /api/v2/voice/campaigns": "listCampaigns",
        "POST /api/v2/files/voice": "uploadRecording",
        "GET /api/v2/files/voice": "listRecordings",
        "GET /api/v2/files/voice/{voice_id}": "downloadRecording",
        "DELETE /api/v2/files/voice/{voice_id}": "deleteRecording",
        "POST /api/v2/files/tts": "createSpokenRecording",
        "POST /api/v2/files/list": "uploadList",
        "GET /api/v2/files/list": "listLists",
        "GET /api/v2/files/list/{list_id}": "getList",
        "DELETE /api/v2/files/list/{list_id}": "deleteList",
        "GET /api/v2/account": "getAccount",
        "GET /api/v2/account/do-not-call": "listDoNotCallNumbers",
        "POST /api/v2/account/do-not-call": "addDoNotCallNumbers",
        "POST /api/v2/account/do-not-call/import": "importDoNotCallNumbers",
        "DELETE /api/v2/account/do-not-call/{phone_number}": "removeDoNotCallNumber",
        "GET /api/v2/servers": "listServers",
        "GET /healthz": "getHealth",
        "POST /api/v1/voice/single": "placeSingleCallV1",
        "POST /api/v1/voice/otp": "placeOneTimePasswordV1",
        "POST /api/v1/voice/tts": "placeSpokenCallV1",
        "POST /api/v1/voice/campaign": "placeCampaignV1",
        "GET /api/v1/voice/cdr/{call_id}": "getCallDetailRecordV1",
        "GET /api/v1/voice/campaign/cdr/{campaign_id}": "listCampaignDetailRecordsV1",
    }
)
"""The operation's name, by method and path."""
