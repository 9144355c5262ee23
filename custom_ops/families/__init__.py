"""The kernels that are compiled ahead of time, a module for each family.

The C++ side of one is in runtime/: gemm_<family>.cpp, or the file of the module's name.

A module has TABLE, its table in the library, and rows(architectures, cache, each), which compiles the family's
kernels for those compute capabilities (None: all) and returns their rows. `each` is `map`, or one that works
in parallel.
"""

from families import (
    attention,
    channels_last,
    conv_depthwise,
    conv_direct,
    conv_few_channels,
    conv_hopper,
    conv_resident,
    few_rows,
    gather_kept,
    hopper,
    hopper_codes,
    hopper_fp8,
    mlp,
    pool,
    round_rows,
    simt,
    stream,
    tensor_core,
    unpack_codes,
)

FAMILIES = (
    *(few_rows, stream, hopper, hopper_codes, hopper_fp8, round_rows, gather_kept, unpack_codes, tensor_core, simt),
    *(conv_hopper, conv_resident, conv_few_channels, conv_depthwise, conv_direct),
    *(pool, channels_last, attention, mlp),
)
