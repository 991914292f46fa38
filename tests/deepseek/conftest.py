import pytest
from deepseek_parts import PARTS, build_with


@pytest.fixture(params=PARTS)
def model(request):
    return build_with(*PARTS[request.param])
