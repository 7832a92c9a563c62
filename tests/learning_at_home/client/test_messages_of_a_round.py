"""What one node is asked in a round goes in as few messages as its limits allow."""

from learning_at_home.client.fanout import MAX_FRAMES_PER_REQUEST, Task, _messages
from learning_at_home.identity import Identity
from learning_at_home.peer_address import PeerAddress
from learning_at_home.transport.calls import Call
from learning_at_home.wire.messages import MAX_WORK_PER_REQUEST, TensorSpec


def calls(number: int, tensors: int) -> list[Call]:
    holder = PeerAddress(Identity.generate().public_key, ("tcp://127.0.0.1:1",), "node")
    spec = TensorSpec("float32", (1, 1))
    task = Task("ffn0.0", 0, holder, "forward", (), 1, [], spec)  # type: ignore[arg-type]
    return [Call("ffn0.0", "forward", (spec,) * tensors, [bytes(4)] * tensors, task) for _ in range(number)]


def test_calls_of_one_tensor_go_together_up_to_the_limit_of_work():
    asked = calls(MAX_WORK_PER_REQUEST + 1, 1)

    assert [len(message) for message in _messages(asked)] == [MAX_WORK_PER_REQUEST, 1]


def test_calls_of_many_tensors_stay_below_the_parts_that_a_node_takes():
    asked = calls(300, 16)
    messages = list(_messages(asked))

    assert [call for message in messages for call in message] == asked
    assert [sum(len(call.frames) for call in message) for message in messages] == [MAX_FRAMES_PER_REQUEST] * 2 + [704]
