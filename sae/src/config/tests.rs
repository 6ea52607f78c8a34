use std::path::PathBuf;

use super::*;

fn set(pairs: &[(&str, &str)]) -> Result<RunConfig> {
    let pairs: Vec<_> = pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
    RunConfig::from_toml("", &pairs)
}

fn problem(pairs: &[(&str, &str)]) -> String {
    set(pairs).unwrap_err().to_string()
}

#[test]
fn an_empty_file_is_a_configuration() {
    assert_eq!(RunConfig::from_toml("", &[]).unwrap(), RunConfig::default());
}

#[test]
fn overrides_win_over_the_file_and_take_bare_words() {
    let pairs = [
        ("sae.k".to_owned(), "8".to_owned()),
        ("sae.method".to_owned(), "abs_topk".to_owned()),
        ("data.acts".to_owned(), "some dir/acts".to_owned()),
        ("train.tokens".to_owned(), "1_000_000".to_owned()),
    ];
    let config = RunConfig::from_toml("[sae]\nk = 64\n[train]\nsteps = 7", &pairs).unwrap();
    assert_eq!(config.sparsifier(), crate::Sparsifier::abs_top_k(8));
    assert_eq!(config.data.acts.unwrap(), PathBuf::from("some dir/acts"));
    // The override says how long to train, so the file's way of saying it is gone.
    assert_eq!((config.train.steps, config.train.tokens), (None, Some(1_000_000)));
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_known_one() {
    for (given, suggested) in [
        ("train.warmup_step", "train.warmup_steps"),
        ("train.learning_rate", "train.lr"),
        ("data.xyzzy_plugh", "there are bilinear.clusters"),
        ("sae.dsae", "sae.d_sae"),
        ("sea.k", "sae.k"),
        ("train.k", "sae.k"),
        ("sae.lr", "train.lr"),
        ("objective.l1.wieght", "objective.l1.weight"),
        ("objective.l2.weight", "weight"),
        ("k", "sae.k"),
    ] {
        let problem = problem(&[(given, "1")]);
        assert!(problem.starts_with(&format!("{given}: ")), "{problem}");
        assert!(problem.contains(suggested), "{given}: {problem}");
    }
    let in_file = RunConfig::from_toml("[train]\nbach = 4096", &[])
        .unwrap_err()
        .to_string();
    assert!(
        in_file.contains("train.bach") && in_file.contains("train.batch"),
        "{in_file}"
    );
}

#[test]
fn a_value_of_another_type_names_its_key() {
    for (key, value) in [
        ("sae.k", "many"),
        ("sae.k", "-1"),
        ("sae.k", "1.5"),
        ("train.lr", "fast"),
        ("sae.method", "gaited"),
        ("data.held_out_rows", "[1]"),
    ] {
        let problem = problem(&[(key, value)]);
        assert!(problem.starts_with(&format!("{key}: ")), "{problem}");
    }
    assert!(problem(&[("sae.method", "gaited")]).contains("abs_topk"));
}

#[test]
fn files_of_activations_and_a_model_over_a_text_exclude_each_other() {
    let text = [
        ("data.model", "m"),
        ("data.text", "[\"a.txt\", \"b\"]"),
        ("data.context", "64"),
    ];
    let config = set(&text).unwrap();
    assert_eq!(config.data.text.as_ref().unwrap().len(), 2);
    assert_eq!(RunConfig::from_toml(&config.to_toml().unwrap(), &[]).unwrap(), config);
    for (more, names) in [
        (
            &[("data.acts", "acts"), ("data.model", "m"), ("data.text", "[\"t\"]")][..],
            ["data.model", "data.acts"],
        ),
        (
            &[("data.acts", "acts"), ("data.context", "64")],
            ["data.context", "data.acts"],
        ),
        (
            &[("data.acts", "acts"), ("data.text_seed", "1")],
            ["data.text_seed", "data.acts"],
        ),
        (
            &[("data.acts", "acts"), ("data.precision", "bf16")],
            ["data.precision", "data.acts"],
        ),
        (&[("data.text", "[\"t\"]")], ["data.model", "data.text"]),
        (&[("data.model", "m")], ["data.text", "data.model"]),
        (&[("data.field", "content")], ["data.field", "data.text"]),
        (&[("data.model", "m"), ("data.text", "[]")], ["data.text", "no text"]),
        (
            &[
                ("data.model", "m"),
                ("data.text", "[\"t\"]"),
                ("data.acts_dtype", "f16"),
            ],
            ["data.acts_dtype", "data.model"],
        ),
        (
            &[("data.model", "m"), ("data.text", "[\"t\"]"), ("data.context", "0")],
            ["data.context", "at least 1"],
        ),
        (&[("data.documents", "pact")], ["data.documents", "pack"]),
    ] {
        let problem = problem(more);
        assert!(names.iter().all(|n| problem.contains(n)), "{problem}");
    }
    assert!(problem(&[("data.seperator", "x")]).contains("data.separator"));
}

#[test]
fn values_that_cannot_be_are_refused() {
    for (pairs, names) in [
        (vec![("sae.k", "65"), ("sae.d_sae", "64")], vec!["sae.k", "65", "64"]),
        (vec![("sae.k", "0")], vec!["sae.k"]),
        (vec![("train.lr", "0")], vec!["train.lr"]),
        (vec![("train.lr", "nan")], vec!["train.lr"]),
        (vec![("train.beta2", "1")], vec!["train.beta2"]),
        (vec![("train.decay_share", "1.5")], vec!["train.decay_share"]),
        (vec![("train.decay", "sine")], vec!["train.decay", "cosine"]),
        (vec![("train.clip_norm", "0")], vec!["train.clip_norm"]),
        (vec![("train.ema", "1")], vec!["train.ema"]),
        (vec![("train.ema", "0")], vec!["train.ema"]),
        (
            vec![("train.optimizer", "muon"), ("train.muon_momentum", "1")],
            vec!["train.muon_momentum"],
        ),
        (vec![("train.optimizer", "muonn")], vec!["train.optimizer", "muon"]),
        (vec![("train.aux_weight", "-1")], vec!["train.aux_weight"]),
        (vec![("train.batch", "0")], vec!["train.batch"]),
        (vec![("train.device", "tpu")], vec!["train.device", "tpu"]),
        (vec![("sae.d_sae", "3000000000")], vec!["sae.d_sae"]),
        (vec![("objective.l1.weight", "-1")], vec!["objective.l1.weight", "-1"]),
        (
            vec![("objective.l1.warmup_share", "2")],
            vec!["objective.l1.warmup_share"],
        ),
        (vec![("objective.tilted.t", "0")], vec!["objective.tilted.t"]),
        (
            vec![("objective.matryoshka.widths", "[]")],
            vec!["objective.matryoshka.widths"],
        ),
        (
            vec![("objective.matryoshka.widths", "[8, 4]")],
            vec!["objective.matryoshka.widths", "ascending"],
        ),
        (
            vec![("objective.matryoshka.sampled", "0")],
            vec!["objective.matryoshka.sampled"],
        ),
        (
            vec![("objective.orthogonality.every", "0")],
            vec!["objective.orthogonality.every"],
        ),
        (
            vec![("objective.orthogonality.chunk", "1")],
            vec!["objective.orthogonality.chunk"],
        ),
        (vec![("objective.tanh.scale", "inf")], vec!["objective.tanh.scale"]),
        (
            vec![("objective.l1", "0.5")],
            vec!["objective.l1", "objective.l1.weight"],
        ),
        (
            vec![("sae.method", "jumprelu"), ("sae.bandwidth", "0")],
            vec!["sae.bandwidth"],
        ),
        (vec![("sae.method", "soft"), ("sae.lambda", "-1")], vec!["sae.lambda"]),
        (
            vec![("sae.method", "feature_choice"), ("sae.zipf_offset", "-1")],
            vec!["sae.zipf_offset"],
        ),
        (vec![("sae.k_start", "64"), ("sae.k_share", "1.5")], vec!["sae.k_share"]),
        (vec![("objective.masked.hidden", "1")], vec!["objective.masked.hidden"]),
        (
            vec![("sae.encoder", "unrolled"), ("sae.encoder_steps", "0")],
            vec!["sae.encoder_steps"],
        ),
        (
            vec![("train.aux", "aux_zipf"), ("train.aux_zipf_share", "-1")],
            vec!["train.aux_zipf_share"],
        ),
        (vec![("sae.method", "cel0"), ("sae.eta", "1")], vec!["sae.eta"]),
    ] {
        let problem = problem(&pairs);
        assert!(names.iter().all(|n| problem.contains(n)), "{problem}");
    }
    let both = RunConfig::from_toml("[train]\nsteps = 1\ntokens = 1", &[])
        .unwrap_err()
        .to_string();
    assert!(both.contains("train.tokens") && both.contains("train.steps"), "{both}");
}

#[test]
fn a_file_that_is_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.toml");
    for text in ["[sae]\nk = ", "[sae]\nkk = 1", "[sae]\nk = 0"] {
        std::fs::write(&path, text).unwrap();
        let error = RunConfig::load(Some(&path), &[]).unwrap_err().to_string();
        assert!(error.contains("mine.toml"), "{error}");
    }
    std::fs::remove_file(&path).unwrap();
    let error = RunConfig::load(Some(&path), &[]).unwrap_err().to_string();
    assert!(error.contains("mine.toml"), "{error}");
}

#[test]
fn a_configuration_survives_its_file_and_differences_name_keys() {
    let before = set(&[
        ("train.lr", "1.7e-4"),
        ("sae.d_sae", "4096"),
        ("train.b_dec_init", "geometric_median"),
    ])
    .unwrap();
    let after = RunConfig::from_toml(&before.to_toml().unwrap(), &[]).unwrap();
    assert_eq!(after, before);
    assert_eq!(before.differences(&after).unwrap(), Vec::<String>::new());
    let sets = [
        ("sae.k".into(), "5".into()),
        ("objective.l1.weight".into(), "0.5".into()),
    ];
    let other = RunConfig::from_toml(&before.to_toml().unwrap(), &sets).unwrap();
    assert_eq!(
        other.differences(&before).unwrap(),
        [
            "objective.l1.warmup_share is 0.05, was nothing",
            "objective.l1.weight is 0.5, was nothing",
            "sae.k is 5, was nothing"
        ]
    );
}

#[test]
fn keys_that_contradict_each_other_are_refused_naming_both() {
    for (pairs, names) in [
        (
            vec![("sae.method", "relu"), ("sae.k", "8")],
            ["sae.k", "sae.method is relu"],
        ),
        (
            vec![("sae.method", "jumprelu"), ("sae.k", "8")],
            ["sae.k", "sae.method is jumprelu"],
        ),
        (vec![("sae.bandwidth", "0.1")], ["sae.bandwidth", "sae.method is topk"]),
        (
            vec![("train.decay", "constant"), ("train.decay_share", "0.1")],
            ["train.decay_share", "train.decay is constant"],
        ),
        (
            vec![("train.muon_momentum", "0.9")],
            ["train.muon_momentum", "train.optimizer is adam"],
        ),
        (
            vec![("sae.method", "bilinear"), ("train.optimizer", "muon")],
            ["train.optimizer", "sae.method is bilinear"],
        ),
        (
            vec![("train.resample_every", "9"), ("sae.tied", "true")],
            ["train.resample_every", "sae.tied is true"],
        ),
        (
            vec![("train.resample_every", "9"), ("sae.encoder", "matching_pursuit")],
            ["train.resample_every", "sae.encoder is a pursuit"],
        ),
        (
            vec![
                ("train.resample_every", "9"),
                ("data.target", "[\"blocks.0.hook_mlp_out\"]"),
            ],
            ["train.resample_every", "data.target"],
        ),
        (
            vec![("train.resample_every", "9"), ("sae.method", "bilinear")],
            ["train.resample_every", "sae.method is bilinear"],
        ),
        (
            vec![("sae.method", "bilinear"), ("train.clip_norm", "1")],
            ["train.clip_norm", "sae.method is bilinear"],
        ),
        (
            vec![("sae.threshold_init", "0.1")],
            ["sae.threshold_init", "sae.method is topk"],
        ),
        (
            vec![("sae.method", "batch_topk"), ("sae.inference", "as_trained")],
            ["sae.inference", "sae.method batch_topk"],
        ),
        (
            vec![("sae.inference_l0", "8")],
            ["sae.inference_l0", "sae.inference is as_trained"],
        ),
        (
            vec![("sae.method", "relu"), ("sae.inference", "threshold")],
            ["sae.inference_l0", "sae.method relu"],
        ),
        (
            vec![
                ("sae.method", "batch_topk"),
                ("sae.inference_l0", "65"),
                ("sae.d_sae", "64"),
            ],
            ["sae.inference_l0", "sae.d_sae"],
        ),
        (
            vec![("objective.gate.weight", "1")],
            ["objective.gate", "sae.method is topk"],
        ),
        (
            vec![("sae.method", "gated"), ("sae.k", "8")],
            ["sae.k", "sae.method is gated"],
        ),
        (
            vec![("objective.l0.weight", "1")],
            ["objective.l0", "sae.method is topk"],
        ),
        (
            vec![
                ("sae.method", "jumprelu"),
                ("objective.l0.target", "65"),
                ("sae.d_sae", "64"),
            ],
            ["objective.l0.target", "sae.d_sae"],
        ),
        (
            vec![("sae.method", "batch_topk"), ("sae.k", "65"), ("sae.d_sae", "64")],
            ["sae.k", "sae.d_sae"],
        ),
        (vec![("sae.lambda", "0.1")], ["sae.lambda", "sae.method is topk"]),
        (
            vec![("sae.encoder_steps", "2")],
            ["sae.encoder_steps", "sae.encoder is linear"],
        ),
        (
            vec![("sae.method", "batch_topk"), ("sae.inference_k", "4")],
            ["sae.inference_k", "sae.method is batch_topk"],
        ),
        (
            vec![("sae.method", "relu"), ("sae.inference_k", "4")],
            ["sae.inference_k", "sae.method is relu"],
        ),
        (
            vec![("sae.inference", "threshold"), ("sae.inference_k", "4")],
            ["sae.inference_k", "sae.inference asks"],
        ),
        (
            vec![("sae.inference_k", "65"), ("sae.d_sae", "64")],
            ["sae.inference_k", "sae.d_sae"],
        ),
        (
            vec![("sae.encoder_weights", "learned")],
            ["sae.encoder_weights", "sae.encoder is linear"],
        ),
        (
            vec![
                ("sae.encoder", "unrolled"),
                ("sae.encoder_weights", "learned"),
                ("sae.tied", "true"),
            ],
            ["sae.tied", "sae.encoder_weights"],
        ),
        (
            vec![("sae.encoder", "unrolled"), ("sae.method", "batch_topk")],
            ["sae.encoder", "sae.method"],
        ),
        (
            vec![("sae.encoder", "unrolled"), ("sae.method", "gated")],
            ["sae.encoder", "sae.method"],
        ),
        (
            vec![("sae.encoder", "matching_pursuit"), ("sae.method", "relu")],
            ["sae.encoder", "sae.method"],
        ),
        (
            vec![("sae.encoder", "orthogonal_pursuit")],
            ["sae.encoder", "sae.method is to be abs_topk"],
        ),
        (
            vec![("sae.encoder", "matching_pursuit"), ("sae.tied", "false")],
            ["sae.tied", "sae.encoder is matching pursuit"],
        ),
        (
            vec![("sae.encoder", "unrolled"), ("sae.inference", "threshold")],
            ["sae.inference", "sae.encoder is unrolled(3)"],
        ),
        (
            vec![("train.aux_zipf_share", "0.1")],
            ["train.aux_zipf_share", "train.aux is aux_k"],
        ),
        (
            vec![("train.aux", "aux_zipf"), ("train.aux_weight", "0")],
            ["train.aux", "train.aux_weight"],
        ),
        (
            vec![("sae.method", "relu"), ("sae.k_start", "8")],
            ["sae.k_start", "sae.method is relu"],
        ),
        (vec![("sae.k_share", "0.5")], ["sae.k_share", "sae.k_start"]),
        (
            vec![("sae.k_start", "65"), ("sae.d_sae", "64")],
            ["sae.k_start", "sae.d_sae"],
        ),
        (
            vec![("sae.zipf_exponent", "1")],
            ["sae.zipf_exponent", "sae.method is topk"],
        ),
        (
            vec![("sae.method", "batch_topk"), ("sae.mutual_share", "0.1")],
            ["sae.mutual_share", "sae.method is batch_topk"],
        ),
        (
            vec![
                ("sae.method", "feature_choice"),
                ("train.batch", "64"),
                ("sae.d_sae", "4096"),
            ],
            ["train.batch", "sae.d_sae"],
        ),
        (
            vec![("sae.method", "jumprelu"), ("sae.signed", "true")],
            ["sae.signed", "sae.method is jumprelu"],
        ),
        (
            vec![("sae.method", "soft"), ("sae.lambda", "0.1"), ("sae.k", "8")],
            ["sae.lambda", "sae.k"],
        ),
        (
            vec![("sae.method", "half"), ("sae.eta", "0.5")],
            ["sae.eta", "sae.method is half"],
        ),
        (
            vec![("sae.method", "soft"), ("sae.inference", "as_trained")],
            ["sae.inference", "sae.method soft"],
        ),
    ] {
        let problem = problem(&pairs);
        assert!(names.iter().all(|n| problem.contains(n)), "{pairs:?}: {problem}");
    }
}

#[test]
fn a_method_brings_what_it_needs_and_every_name_is_its_key() {
    let filled = |method: &str| {
        let mut config = set(&[("sae.method", method)]).unwrap();
        config.fill_method();
        config.validate().unwrap();
        assert_eq!(config.method().key(), method);
        config
    };
    for method in ["topk", "abs_topk", "ksparse"] {
        let config = filled(method);
        assert_eq!((config.sae.k, config.sae.inference), (Some(32), None));
        assert_eq!(config.objective, ObjectiveConfig::default());
    }
    for method in ["batch_topk", "abs_batch_topk"] {
        let config = filled(method);
        assert_eq!(config.inference(), (InferenceForm::Threshold, 32.0));
        assert_eq!(config.sae.inference_l0, Some(32.0));
    }
    for method in ["feature_choice", "abs_feature_choice"] {
        let config = filled(method);
        assert_eq!(config.inference(), (InferenceForm::ThresholdPerLatent, 32.0));
        let sae = config.sae;
        assert_eq!((sae.zipf_exponent, sae.zipf_offset), (Some(1.0), Some(32.0)));
        assert!(sae.mutual_share.is_some());
    }
    for method in ["hard", "soft", "half", "cel0"] {
        let config = filled(method);
        assert_eq!((config.sae.k, config.sae.signed), (Some(32), Some(true)));
        assert_eq!(config.sae.eta.is_some(), method == "cel0");
        assert_eq!(config.inference(), (InferenceForm::Threshold, 32.0));
    }
    let relu = filled("relu");
    assert!(relu.sae.k.is_none() && relu.objective.l1.is_some());
    let gated = filled("gated");
    assert!(gated.objective.l1.is_some() && gated.objective.gate.is_some());
    let jump = filled("jumprelu");
    assert!(jump.objective.l0.is_some() && jump.sae.bandwidth.is_some() && jump.sae.threshold_init.is_some());
    let mut tanh = set(&[("sae.method", "jumprelu"), ("objective.tanh.weight", "1e-2")]).unwrap();
    tanh.fill_method();
    assert!(tanh.objective.l0.is_none());
}

#[test]
fn shapes_that_contradict_themselves_are_refused_naming_both_keys() {
    for (pairs, parts) in [
        (&[("sae.skip", "true")][..], &["sae.skip", "data.target"][..]),
        (
            &[("sae.skip", "true"), ("data.hooks", "[\"a\", \"b\"]")],
            &["sae.skip", "data.target"],
        ),
        (
            &[("data.target", "a"), ("data.hook", "a")],
            &["data.target", "data.hook"],
        ),
        (&[("data.hooks", "[\"a\", \"a\"]")], &["data.hooks", "a twice"]),
        (
            &[("data.hook", "a"), ("data.target", "b"), ("sae.tied", "true")],
            &["sae.tied", "data.target"],
        ),
        (
            &[("data.hook", "a"), ("data.target", "b"), ("sae.encoder", "unrolled")],
            &["sae.encoder", "data.target"],
        ),
        (
            &[
                ("data.hook", "a"),
                ("data.target", "b"),
                ("objective.masked.hidden", "0.1"),
            ],
            &["objective.masked", "data.target"],
        ),
        (&[("data.hooks", "[]")], &["data.hooks", "no hook"]),
        (&[("data.target", "[]")], &["data.target", "no hook"]),
        (&[("data.target", "1")], &["data.target", "name of a hook"]),
        (
            &[
                ("data.target_acts", "y.npy"),
                ("data.model", "m"),
                ("data.text", "[\"t\"]"),
            ],
            &["data.target_acts", "data.acts"],
        ),
    ] {
        let problem = problem(pairs);
        assert!(parts.iter().all(|part| problem.contains(part)), "{problem}");
    }
    let both = RunConfig::from_toml("[data]\nhook = \"a\"\nhooks = [\"a\", \"b\"]", &[]).unwrap_err();
    assert!(
        both.to_string().starts_with("data.hooks: is given beside data.hook:"),
        "{both}"
    );
}

#[test]
fn a_target_is_a_name_or_a_list_and_one_name_is_written_as_one() {
    let one = set(&[("data.hook", "a"), ("data.target", "b")]).unwrap();
    let list = set(&[("data.hook", "a"), ("data.target", "[\"b\"]")]).unwrap();
    assert_eq!(one, list);
    assert!(one.to_toml().unwrap().contains("target = \"b\""));
    let two = set(&[("data.hook", "a"), ("data.target", "[\"b\", \"c\"]")]).unwrap();
    assert_eq!(RunConfig::from_toml(&two.to_toml().unwrap(), &[]).unwrap(), two);
    // The later way to name what is read wins over the file's.
    let over = [("data.hooks".to_owned(), "[\"b\", \"c\"]".to_owned())];
    let config = RunConfig::from_toml("[data]\nhook = \"a\"", &over).unwrap();
    assert_eq!(
        (config.data.hook.clone(), config.data.reads()),
        (None, vec!["b".into(), "c".into()])
    );
}

#[test]
fn keys_about_sparsity_beside_a_bilinear_autoencoder_are_refused_naming_both() {
    for (pairs, parts) in [
        (&[("sae.k", "3")][..], &["sae.k", "bilinear"][..]),
        (&[("sae.tied", "true")], &["sae.tied", "bilinear"]),
        (&[("objective.l1.weight", "1")], &["objective.l1", "bilinear"]),
        (&[("data.target", "b")], &["data.target", "bilinear"]),
        (&[("data.hooks", "[\"a\", \"b\"]")], &["data.hooks", "bilinear"]),
        (&[("bilinear.clusters", "3")], &["bilinear.clusters", "bilinear.form"]),
        (
            &[("bilinear.form", "mixed"), ("bilinear.clusters", "0")],
            &["bilinear.clusters", "0"],
        ),
        (&[("bilinear.hoyer", "-1")], &["bilinear.hoyer", "-1"]),
        (&[("bilinear.form", "sorted")], &["bilinear.form", "ordered"]),
    ] {
        let problem = problem(&[&[("sae.method", "bilinear")], pairs].concat());
        assert!(parts.iter().all(|part| problem.contains(part)), "{problem}");
    }
    let alone = problem(&[("bilinear.form", "mixed")]);
    assert!(
        alone.contains("bilinear.form") && alone.contains("sae.method is topk"),
        "{alone}"
    );
    let mut config = set(&[("sae.method", "bilinear"), ("sae.expansion", "4")]).unwrap();
    config.fill_method();
    config.validate().unwrap();
    assert_eq!(config.bilinear, Some(BilinearConfig::default()));
}
