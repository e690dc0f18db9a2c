"""Several processes compute one pass together, each for a part of the tokens, with the bits of one process."""

import multiprocessing
import shutil

import pytest
import torch
import torch.distributed as dist

CPU = torch.device("cpu")
# Rows and columns of the image, and of a reference image; with 20 text tokens.
MODELS = {
    "bf16": {"guidance": True, "fused": True, "precision": "bf16"},
    "klein": {"guidance": False, "fused": True, "precision": "bf16"},
    "fp8": {"guidance": True, "fused": False, "precision": "fp8"},
    "qfloat8": {"guidance": True, "fused": False, "precision": "qfloat8"},
}
CASES = [((9, 9), ()), ((3, 3), ()), ((5, 6), ((4, 4),))]


def small_transformer(*, guidance, fused, precision):
    from diffusers import Flux2Transformer2DModel

    from worker.model.fp8 import convert_to_fp8
    from worker.model.qfloat8 import quantize
    from worker.model.rounding import fuse_qkv, match_transformer_rounding

    torch.manual_seed(1)
    model = Flux2Transformer2DModel(
        num_layers=1, num_single_layers=2, attention_head_dim=32, num_attention_heads=4, joint_attention_dim=64,
        in_channels=16, axes_dims_rope=(8, 8, 8, 8), timestep_guidance_channels=32, guidance_embeds=guidance,
    )  # fmt: skip
    model.bfloat16().eval().requires_grad_(False)
    match_transformer_rounding(model)
    if fused:
        fuse_qkv(model)
    if precision == "fp8":
        convert_to_fp8(model)
    elif precision == "qfloat8":
        quantize(model, device=CPU)
    return model


def run(model, image, references):
    from worker.rendering.denoise import TransformerInputs, predict
    from worker.rendering.latents import image_ids, text_ids

    random = torch.Generator().manual_seed(2)
    ids = torch.cat([image_ids(*image), *(image_ids(*size, time=10) for size in references)])
    call = TransformerInputs(
        torch.randn(1, len(ids), 16, generator=random).bfloat16(),
        torch.tensor([0.7]).bfloat16(),
        torch.randn(1, 20, 64, generator=random).bfloat16(),
        ids,
        text_ids(20),
        torch.tensor([4.0]).bfloat16(),
    )
    return predict(model, call)


def member(rank, devices, folder, limits, answers):
    """One process of a group: report the elements that differ from a pass of one process, and the devices used."""
    from worker.model.device_group import DeviceGroup
    from worker.model.split_transformer import split_forward
    from worker.model.token_split import RowLimits

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    group = DeviceGroup(folder / "group", rank=rank, devices=devices, device=CPU, limits=RowLimits(*limits))
    found = {}
    for name, options in MODELS.items():
        model = small_transformer(**options)
        expected = [run(model, *case) for case in CASES]
        split_forward(model, group)
        group.open(model)
        alone = [run(model, *case) for case in CASES]
        with group.dividing(True):
            together = [run(model, *case) for case in CASES]
            used = [group.split(text=20, image=values.shape[1], batch=1).devices for values in expected]
        # Elements that differ; a process that a small image does not need has no result.
        found[name] = [
            (count, int((one != wanted).sum()), int((many != wanted).sum()) if rank < count else 0)
            for count, wanted, one, many in zip(used, expected, alone, together, strict=True)
        ]
    group.close()
    answers.put((rank, found))


def compiled_member(rank, devices, folder, answers):
    """One process of a group with compiled blocks: report the elements that differ from a pass of one process."""
    from worker.model.compile import compile_blocks
    from worker.model.device_group import DeviceGroup
    from worker.model.split_transformer import split_forward

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    # Of all precisions, float8 needs most of the compiled code: its input is quantised before the product.
    model = small_transformer(**MODELS["fp8"])
    compile_blocks(model, exact=False)
    group = DeviceGroup(folder / "group", rank=rank, devices=devices, device=CPU)
    split_forward(model, group)
    group.open(model)
    alone = [run(model, *case) for case in CASES]
    with group.dividing(True):
        together = [run(model, *case) for case in CASES]
    group.close()
    answers.put((rank, [int((many != one).sum()) for one, many in zip(alone, together, strict=True)]))


def traced_member(rank, devices, folder, answers):
    """One process of a group: report the order of exchanges and of single blocks' products in a pass."""
    from worker.model.device_group import DeviceGroup
    from worker.model.heads import HeadProjection
    from worker.model.split_transformer import split_forward

    order = []

    def note(owner, name):
        original = getattr(owner, name)

        def noting(*given, **named):
            order.append(name)
            return original(*given, **named)

        setattr(owner, name, noting)

    torch.set_grad_enabled(False)
    model = small_transformer(**MODELS["bf16"])
    group = DeviceGroup(folder / "group", rank=rank, devices=devices, device=CPU)
    split_forward(model, group)
    group.open(model)
    for owner, name in ((dist, "all_gather"), (HeadProjection, "heads"), (HeadProjection, "gate_up")):
        note(owner, name)
    with group.dividing(True):
        run(model, *CASES[0])
    group.close()
    answers.put((rank, order))


def counted_member(rank, devices, folder, limits, answers):
    """One process of a group: report the devices that exchange heads in each pass that this process has prepared."""
    from worker.model.device_group import DeviceGroup
    from worker.model.head_exchange import CollectiveExchange
    from worker.model.split_transformer import split_forward
    from worker.model.token_split import RowLimits

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    prepared = []
    begin = CollectiveExchange.begin

    def noting(exchange, split):
        prepared.append((split.devices, dist.get_process_group_ranks(exchange._group)))
        begin(exchange, split)

    CollectiveExchange.begin = noting
    model = small_transformer(**MODELS["bf16"])
    group = DeviceGroup(folder / "group", rank=rank, devices=devices, device=CPU, limits=RowLimits(*limits))
    split_forward(model, group)
    group.open(model)
    with group.dividing(True):
        for case in CASES:
            run(model, *case)
    in_pass = group.is_in_pass
    group.close()
    answers.put((rank, (prepared, in_pass)))


def named_member(rank, devices, folder, answers):
    """One process of a group: report the group's name."""
    from worker.model.device_group import DeviceGroup

    group = DeviceGroup(folder / "group", rank=rank, devices=devices, device=CPU)
    group.close()
    answers.put((rank, group.name))


@pytest.fixture(scope="module")
def processes():
    """A way to start processes that import the model's libraries once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["worker.model.split_transformer", "worker.rendering.denoise", "worker.model.fp8"])
    return context


def answers_of(target, processes, devices, *given):
    """Return what each process of a group reports, by rank."""
    answers = processes.Queue()
    members = [processes.Process(target=target, args=(rank, devices, *given, answers)) for rank in range(devices)]
    for process in members:
        process.start()
    found = dict(answers.get(timeout=300) for _ in members)
    for process in members:
        process.join(30)
    return found


@pytest.mark.parametrize(
    ("devices", "limits", "used"),
    [
        (2, (1, 1), [2, 2, 2]),
        # The text's parts of 5 rows are too short for double blocks, and the image of 9 tokens for four processes.
        (4, (7, 8), [4, 1, 4]),
    ],
)
def test_no_bit_depends_on_the_number_of_processes(processes, tmp_path, devices, limits, used):
    found = answers_of(member, processes, devices, tmp_path, limits)

    assert found == {rank: {name: [(count, 0, 0) for count in used] for name in MODELS} for rank in range(devices)}


def test_processes_without_a_part_in_a_pass_prepare_exchanges_among_themselves_as_often_as_the_others(
    processes, tmp_path
):
    # Images of 81, 9 and 46 tokens: the second needs two of the four processes.
    found = answers_of(counted_member, processes, 4, tmp_path, (3, 4))

    pairs = {0: [0, 1], 1: [0, 1], 2: [2, 3], 3: [2, 3]}
    everyone = [0, 1, 2, 3]
    assert found == {rank: ([(4, everyone), (2, pairs[rank]), (4, everyone)], False) for rank in range(4)}


def test_a_process_joins_one_group_of_gpus_at_most(tmp_path, monkeypatch):
    from worker.model import device_group

    earlier = object.__new__(device_group.DeviceGroup)
    earlier.device = torch.device("cuda:0")
    monkeypatch.setitem(device_group.EXCHANGES, "earlier", earlier)

    with pytest.raises(ValueError, match="another group needs a new process"):
        device_group.DeviceGroup(tmp_path / "group", rank=0, devices=2, device=torch.device("cuda:0"))

    # Processes on a CPU exchange no addresses.
    device_group.DeviceGroup(tmp_path / "group", rank=0, devices=1, device=CPU).close()


@pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler, which compiling needs on a CPU"
)
def test_no_bit_of_compiled_blocks_depends_on_the_number_of_processes(processes, tmp_path):
    assert answers_of(compiled_member, processes, 2, tmp_path) == {rank: [0] * len(CASES) for rank in range(2)}


def test_a_group_has_the_same_name_at_each_start_so_that_its_compiled_code_is_found_in_caches(processes, tmp_path):
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()

    first, second = (answers_of(named_member, processes, 1, folder)[0] for folder in folders)

    assert first == second


def test_heads_are_sent_before_the_rest_of_a_single_block_is_multiplied(processes, tmp_path):
    found = answers_of(traced_member, processes, 2, tmp_path)

    # Queries, keys and values are sent, and attended heads returned; the last exchange gathers the image's tokens.
    double, single = ["all_gather"] * 4, ["heads", *["all_gather"] * 3, "gate_up", "all_gather"]
    assert found == {rank: [*double, *single, *single, "all_gather"] for rank in range(2)}


def test_a_process_that_has_left_its_group_renders_alone(tmp_path):
    from worker.model.device_group import DeviceGroup
    from worker.model.split_transformer import split_forward

    model = small_transformer(**MODELS["bf16"])
    expected = run(model, *CASES[0])
    group = DeviceGroup(tmp_path / "group", rank=0, devices=1, device=CPU)
    split_forward(model, group)
    group.open(model)

    group.close()

    assert torch.equal(run(model, *CASES[0]), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning")
def test_blocks_that_are_compiled_after_they_have_joined_a_group_stay_in_it(tmp_path):
    from worker.model.compile import compile_blocks
    from worker.model.device_group import DeviceGroup
    from worker.model.split_transformer import split_forward

    model = small_transformer(**MODELS["bf16"])
    group = DeviceGroup(tmp_path / "group", rank=0, devices=1, device=CPU)
    split_forward(model, group)

    compile_blocks(model, exact=True)

    group.close()
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    assert [block.attn.processor.group for block in blocks] == [group.name] * 3


def test_hooks_in_a_group_receive_the_whole_output_of_their_layer(tmp_path):
    from worker.model.device_group import DeviceGroup
    from worker.model.split_transformer import split_forward

    shapes = []

    def double(_, inputs, output):
        shapes.append(tuple(output.shape))
        return 2 * output

    model = small_transformer(**MODELS["bf16"])
    without = run(model, *CASES[1])
    model.single_transformer_blocks[0].attn.to_qkv_mlp_proj.register_forward_hook(double)
    expected = run(model, *CASES[1])
    group = DeviceGroup(tmp_path / "group", rank=0, devices=1, device=CPU)
    split_forward(model, group)
    group.open(model)

    found = run(model, *CASES[1])

    group.close()
    assert torch.equal(found, expected)
    assert not torch.equal(found, without)
    # 20 text and 9 image tokens; 128 channels of queries, keys and values, 384 of gate and up.
    assert shapes == [(1, 29, 3 * 128 + 2 * 384)] * 2


def test_heads_that_cannot_be_shared_are_refused(tmp_path):
    from types import SimpleNamespace

    from worker.model.device_group import DeviceGroup

    group = DeviceGroup(tmp_path / "group", rank=0, devices=1, device=CPU)
    group.devices = 8
    few = SimpleNamespace(config=SimpleNamespace(num_attention_heads=12, attention_head_dim=128))

    with pytest.raises(ValueError, match="12 attention heads cannot be shared by 8 devices"):
        group.open(few)
    group.close()
