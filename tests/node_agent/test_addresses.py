"""Names become numbers before they are announced."""

import pytest

from learning_at_home.errors import ConfigError
from node_agent.addresses import numeric


@pytest.mark.parametrize("host,address", [("localhost", "127.0.0.1"), ("203.0.113.7", "203.0.113.7"), ("::1", "::1")])
async def test_a_name_becomes_its_number(host, address):
    assert await numeric(host) == address


async def test_a_name_without_an_address_is_a_configuration_error():
    with pytest.raises(ConfigError, match="no address is known for the host 'no such host'"):
        await numeric("no such host")
