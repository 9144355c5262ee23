"""Bad models on the CPU provider: one clear error when the session is made, never a crash."""

import pytest
from bad_models import bad_models, models_onnxruntime_refuses
from refusals import make_session, survives

PROVIDER = "CPUExecutionProvider"


@pytest.mark.parametrize(("model", "reason"), [pytest.param(*rest, id=name) for name, *rest in bad_models()])
def test_the_operator_refuses(options, model, reason):
    with pytest.raises(Exception, match="DeftGemm node 'layer'") as caught:
        make_session(model, options, PROVIDER)
    assert reason in str(caught.value)


@pytest.mark.parametrize("model", [pytest.param(m, id=name) for name, m in models_onnxruntime_refuses()])
def test_the_schema_refuses(options, model):
    with pytest.raises(Exception, match="layer"):
        make_session(model, options, PROVIDER)


def test_damaged_models_never_crash(library):
    refused, ran = survives(library, PROVIDER, 300)
    assert refused > 200
    assert ran > 5
