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
    assert_eq!(config.sparsifier(), Sparsifier::abs_top_k(8));
    assert_eq!(config.data.acts.unwrap(), PathBuf::from("some dir/acts"));
    // The override says how long to train, so the file's way of saying it is gone.
    assert_eq!((config.train.steps, config.train.tokens), (None, Some(1_000_000)));
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_known_one() {
    for (given, suggested) in [
        ("train.warmup_step", "train.warmup_steps"),
        ("train.learning_rate", "train.lr"),
        ("data.xyzzy", "there are data.acts"),
        ("sae.dsae", "sae.d_sae"),
        ("sea.k", "sae.k"),
        ("train.k", "sae.k"),
        ("sae.lr", "train.lr"),
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
        ("sae.method", "gated"),
        ("data.held_out_rows", "[1]"),
    ] {
        let problem = problem(&[(key, value)]);
        assert!(problem.starts_with(&format!("{key}: ")), "{problem}");
    }
    assert!(problem(&[("sae.method", "gated")]).contains("abs_topk"));
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
        (vec![("train.aux_weight", "-1")], vec!["train.aux_weight"]),
        (vec![("train.batch", "0")], vec!["train.batch"]),
        (vec![("train.device", "tpu")], vec!["train.device", "tpu"]),
        (vec![("sae.d_sae", "3000000000")], vec!["sae.d_sae"]),
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
    let other = RunConfig::from_toml(&before.to_toml().unwrap(), &[("sae.k".into(), "5".into())]).unwrap();
    assert_eq!(other.differences(&before).unwrap(), ["sae.k is 5, was 32"]);
}
