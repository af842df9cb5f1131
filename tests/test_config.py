from __future__ import annotations

import dataclasses
import json

import pytest

from gplfast.config import SECTIONS, GenerateConfig, RunConfig, TrainConfig, load_config
from gplfast.errors import ConfigError
from gplfast.preset_settings import DEMO, PRESETS
from gplfast.settings import Checked, output_settings, setting


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_paper_preset_has_the_numbers_of_gpl():
    config = load_config(preset="paper")
    assert config.generate.model == "BeIR/query-gen-msmarco-t5-base-v1"
    assert (config.generate.top_k, config.generate.top_p, config.generate.max_new_tokens) == (25, 0.95, 64)
    assert (config.generate.queries_per_passage, config.generate.copied, config.generate.extra_draws) == (0, "keep", 0)
    assert config.mine.round_trip_top == 0
    assert [name.rpartition("/")[2] for name in config.mine.retrievers] == [
        "msmarco-distilbert-base-v3",
        "msmarco-MiniLM-L-6-v3",
    ]
    assert (config.mine.metrics, config.mine.negatives_per_query) == (("cosine",), 50)
    assert (config.label.model, config.label.activation) == ("cross-encoder/ms-marco-MiniLM-L-6-v2", "identity")
    train = config.train
    assert (train.base, train.steps, train.batch_size, train.similarity) == (
        "distilbert-base-uncased",
        140_000,
        32,
        "dot",
    )
    assert (train.learning_rate, train.weight_decay, train.warmup_steps, train.max_grad_norm) == (2e-5, 0.01, 1000, 1.0)
    assert train.max_seq_length == config.label.max_seq_length == 350
    assert (config.genq.batch_size, config.genq.warmup_steps, config.genq.warmup_share) == (24, 0, 0.1)


def test_nano_preset_needs_no_network():
    config = load_config()
    names = [config.generate.model, config.label.model, config.train.base, config.genq.base, *config.mine.retrievers]
    assert all(name.startswith("nano:") or name == "bm25" for name in names)
    assert config.train.similarity == "cosine"
    load_config(overrides=DEMO)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_pass_their_own_checks(preset):
    assert load_config(preset=preset).preset == preset


def test_file_goes_over_the_preset_and_flags_over_the_file(tmp_path):
    file = write(tmp_path, "my.toml", 'preset = "paper"\nseed = 3\n[train]\nsteps = 10\nlearning_rate = 1\n')
    config = load_config(file, overrides={"train": {"steps": 20}})
    assert (config.preset, config.seed, config.train.steps, config.train.learning_rate) == ("paper", 3, 20, 1.0)
    assert config.train.batch_size == 32


def test_yaml_and_toml_are_the_same(tmp_path):
    pytest.importorskip("yaml")
    toml = write(tmp_path, "a.toml", '[mine]\nretrievers = ["bm25"]\nexclude_duplicates = false\n')
    yaml = write(tmp_path, "a.yaml", "mine:\n  retrievers: [bm25]\n  exclude_duplicates: false\n")
    assert load_config(toml) == load_config(yaml)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[generate]\ntop_pp = 0.9", r"bad.toml: \[generate\] top_pp is not a setting; did you mean top_p\?"),
        ("[generat]\ntop_p = 0.9", r"bad.toml: generat is not a setting; did you mean generate\?"),
        ("top_p = 0.9", r"bad.toml: top_p is not a setting here; did you mean top_p in \[generate\]\?"),
        ("[generate]\ntop_p = 1.5", r"bad.toml: \[generate\] top_p is 1.5 but must be at most 1"),
        ("[generate]\ntop_p = nan", r"bad.toml: \[generate\] top_p is nan but must be a finite number"),
        ("[generate]\ntop_k = 2.5", r"bad.toml: \[generate\] top_k is 2.5 but must be a whole number"),
        ("[generate]\ntop_k = true", r"bad.toml: \[generate\] top_k is True but must be a whole number"),
        ("[generate]\ncopied = 'skip'", r"\[generate\] copied is 'skip' but must be one of drop, keep"),
        ("[generate]\nextra_draws = -0.5", r"\[generate\] extra_draws is -0.5 but must be at least 0"),
        ("[generate]\nextra_draws = inf", r"\[generate\] extra_draws is inf but must be a finite number"),
        ("[mine]\nround_trip_top = -1", r"\[mine\] round_trip_top is -1 but must be at least 0"),
        ("[train]\nsimilarity = 'cos_sim'", r"similarity is 'cos_sim' but must be one of dot, cosine"),
        ("[train]\nrescale_range = [1, 2]", r"rescale_range is \(1.0, 2.0\) but must be two numbers"),
        ("[mine]\nretrievers = []", r"\[mine\] retrievers is empty"),
        (
            "[mine]\nretrievers = ['a', 'b']\nmetrics = ['dot', 'dot', 'dot']",
            r"metrics has 3 entries but retrievers has 2",
        ),
        ("[mine]\nretrievers = ['a', 'a']", r"retrievers names one twice: a, a"),
        ("train = 3", r"bad.toml: train is 3 but must be a table of settings"),
        ("preset = 'huge'", r"preset is 'huge' but must be one of nano, paper"),
        ("= 3", r"bad.toml: is not valid TOML"),
    ],
)
def test_bad_files_say_where_and_what(tmp_path, text, message):
    file = write(tmp_path, "bad.toml", text)
    with pytest.raises(ConfigError, match=message):
        load_config(file)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.toml: cannot be read"):
        load_config(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match=r"must be .toml, .yaml or .yml"):
        load_config(write(tmp_path, "a.ini", ""))
    with pytest.raises(ConfigError, match=r"holds a list but must hold keys and values"):
        load_config(write(tmp_path, "a.yaml", "- 1"))
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(ConfigError, match=r"is not UTF-8 at byte 2"):
        load_config(tmp_path / "latin.toml")


def test_a_student_given_for_gpl_is_genqs_too():
    config = load_config(
        overrides={"train": {"base": "a", "similarity": "dot", "steps": 5}, "genq": {"similarity": "cosine"}}
    )
    assert (config.genq.base, config.genq.similarity) == ("a", "cosine")
    assert config.genq.steps != 5


def test_every_setting_has_a_help_text_and_a_valid_default():
    for section in SECTIONS:
        part = getattr(RunConfig(), section)
        for item in dataclasses.fields(part):
            assert len(item.metadata["help"]) > 10, item.name
        values = {item.name: getattr(part, item.name) for item in dataclasses.fields(part)}
        assert getattr(load_config(overrides={section: values}), section) == part


def test_settings_without_influence_on_the_output_are_not_recorded():
    settings = output_settings(load_config().generate)
    assert "batch_size" not in settings
    assert "model" not in settings  # its fingerprint is recorded instead
    assert settings["top_p"] == 0.95
    json.dumps(settings)


def test_steps_are_given_or_follow_from_the_queries():
    assert TrainConfig(steps=7).n_steps(1000) == 7
    assert TrainConfig(visits_per_query=2.0, batch_size=32).n_steps(100) == 7
    assert TrainConfig(visits_per_query=2.0, batch_size=32, max_steps=3).n_steps(100) == 3
    assert TrainConfig(visits_per_query=0.001).n_steps(1) == 1
    assert TrainConfig().n_warmup(140_000) == 1000
    assert TrainConfig(warmup_steps=0, warmup_share=0.1).n_warmup(95) == 10
    assert TrainConfig().n_warmup(5) == 5


def test_settings_are_checked_however_they_are_made():
    with pytest.raises(ConfigError, match=r"GenerateConfig: top_p is 2\.0 but must be at most 1"):
        GenerateConfig(top_p=2.0)
    with pytest.raises(ConfigError, match="TrainConfig: similarity is 'l2' but must be one of dot, cosine"):
        dataclasses.replace(TrainConfig(), similarity="l2")
    with pytest.raises(ConfigError, match=r"RunConfig: train is \{\} but must be TrainConfig\("):
        RunConfig(train={})
    assert TrainConfig(rescale_range=[-1, 1]).rescale_range == (-1.0, 1.0)


def test_bare_settings_claim_no_preset():
    assert RunConfig().preset == ""
    assert load_config().preset == "nano"


def test_a_setting_that_came_later_leaves_older_artifacts_fresh():
    @dataclasses.dataclass(frozen=True)
    class Section(Checked):
        first: int = setting(1, "was there")
        later: str = setting("off", "came later", added=True)

    assert output_settings(Section()) == {"first": 1}
    assert output_settings(Section(later="on")) == {"first": 1, "later": "on"}


def test_students_are_named_once_and_refreshes_fit_the_training():
    for students in ([], ["gpl", "gpl"]):
        with pytest.raises(
            ConfigError, match=r"students is .* but must name at least one of gpl, rgpl, genq, each once"
        ):
            load_config(overrides={"students": students})
    assert load_config().refresh.steps_between(200) == 50
    assert load_config().refresh.steps_between(2) == 1
    assert load_config(preset="paper").refresh.steps_between(140_000) == 30_000
