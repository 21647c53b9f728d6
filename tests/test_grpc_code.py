"""The table of gRPC codes, against the one of grpc itself."""

import grpc

from meshlib.grpc_code import CODE_WORDS, HTTP_STATUS, GrpcCode, code_of_status


def test_the_codes_are_those_of_grpc() -> None:
    """Numbers and names, and a word for each but OK."""
    assert {code.name: code.value for code in GrpcCode} == {code.name: code.value[0] for code in grpc.StatusCode}
    assert set(CODE_WORDS) == {code.name.lower() for code in grpc.StatusCode} - {"ok"}
    assert len(HTTP_STATUS) == len(GrpcCode)


def test_what_the_mesh_refuses_keeps_its_meaning_both_ways() -> None:
    """The statuses that the mesh makes become codes whose status is the same again."""
    for status in (403, 429, 503, 504, 501, 401, 499):
        assert HTTP_STATUS[code_of_status(status)] == status
    assert code_of_status(204) is GrpcCode.OK
    assert code_of_status(418) is GrpcCode.UNKNOWN
