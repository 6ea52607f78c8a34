//! What the writer takes, the reader gives back; what is damaged is refused by name.

use std::fs;
use std::path::Path;

use super::*;

fn manifest(d_sae: usize) -> IndexManifest {
    IndexManifest {
        format_version: FORMAT_VERSION,
        d_in: 8,
        d_sae,
        hook: "blocks.1.hook_resid_post".into(),
        model: "tiny".into(),
        corpus: "a text".into(),
        tokens: 1000,
        contexts: 50,
        signed: true,
        quantiles: 5,
        dictionary: DictionarySummary {
            activation: "abs_topk".into(),
            k: Some(4),
            fvu: Some(0.25),
            l0: Some(3.5),
            dead: None,
        },
    }
}

/// A record whose every field depends on `feature`; every third feature is dead.
fn detail(feature: u32) -> FeatureDetail {
    if feature % 3 == 2 {
        return FeatureDetail {
            summary: FeatureSummary {
                feature,
                ..Default::default()
            },
            ..Default::default()
        };
    }
    let f = feature as f32;
    let example = |rank: u32| Example {
        context: u64::from((feature * 7 + rank) % 50),
        position: rank,
        value: f + 1.0 / (1.0 + rank as f32),
        activations: (0..=rank)
            .map(|p| At {
                position: p,
                value: f - p as f32,
            })
            .collect(),
    };
    FeatureDetail {
        summary: FeatureSummary {
            feature,
            alive: true,
            n_active: u64::from(feature) + 1,
            density: f64::from(feature + 1) / 1000.0,
            max: f + 1.0,
            min: -f,
            mean_active: f / 3.0,
            top_tokens: (0..feature % 4).collect(),
        },
        positive: Histogram {
            log2_start: -1.5,
            log2_width: 0.125,
            counts: (0..64).map(|b| b + u64::from(feature)).collect(),
        },
        negative: Histogram::default(),
        top_logits: vec![TokenLogit {
            token: feature,
            logit: f,
        }],
        bottom_logits: vec![],
        neighbours: vec![
            Neighbour {
                feature: feature + 1,
                cosine: 0.5,
            },
            Neighbour {
                feature: 0,
                cosine: -0.25,
            },
        ],
        strata: vec![
            Examples {
                stratum: Stratum::Top,
                examples: (0..5).map(example).collect(),
            },
            Examples {
                stratum: Stratum::Bottom,
                examples: vec![example(2)],
            },
            Examples {
                stratum: Stratum::Quantile(4),
                examples: (0..2).map(example).collect(),
            },
        ],
    }
}

fn context(context: u64) -> StoredContext {
    StoredContext {
        context,
        document: context / 3,
        tokens: (0..context as u32 % 9).collect(),
    }
}

fn write(dir: &Path, d_sae: u32, existing: Existing) -> crate::Result<()> {
    let mut writer = IndexWriter::create(dir, existing)?;
    for feature in 0..d_sae {
        writer.feature(&detail(feature))?;
    }
    for number in (0..50).filter(|n| n % 10 != 3) {
        writer.context(&context(number))?;
    }
    writer.finish(&manifest(d_sae as usize), [&b"a"[..], b"", b"\xf0\x9f"])
}

#[test]
fn what_is_written_is_read_back_feature_by_feature() {
    let dir = tempfile::tempdir().unwrap();
    // More rows than a page, a batch and several of each hold.
    let d_sae = 5000;
    write(dir.path(), d_sae, Existing::Refuse).unwrap();
    let index = FeatureIndex::open(dir.path()).unwrap();
    assert_eq!(index.manifest(), &manifest(d_sae as usize));
    assert_eq!(index.summaries().len(), d_sae as usize);
    for feature in (0..d_sae).step_by(37).chain([127, 128, 4095, 4096, d_sae - 1]) {
        assert_eq!(index.summaries()[feature as usize], detail(feature).summary);
        assert_eq!(index.feature(feature).unwrap(), detail(feature));
    }
    assert_eq!(index.context(49).unwrap(), context(49));
    assert_eq!(index.context_tokens(0).unwrap(), Vec::<u32>::new());
    assert_eq!(index.token_bytes(0), Some(&b"a"[..]));
    assert_eq!(index.token_bytes(1), Some(&b""[..]));
    assert_eq!(index.token_bytes(2), Some(&b"\xf0\x9f"[..]));
    assert_eq!(index.token_bytes(3), None);
    assert!(
        index
            .feature(d_sae)
            .unwrap_err()
            .to_string()
            .contains("no feature 5000")
    );
    assert!(index.context(3).unwrap_err().to_string().contains("no context 3"));
}

#[test]
fn threads_read_different_features_at_once() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 700, Existing::Refuse).unwrap();
    let index = FeatureIndex::open(dir.path()).unwrap();
    std::thread::scope(|scope| {
        for t in 0..4 {
            let index = &index;
            scope.spawn(move || {
                for feature in (t..700).step_by(13) {
                    assert_eq!(index.feature(feature).unwrap(), detail(feature));
                }
            });
        }
    });
}

#[test]
fn an_existing_index_is_replaced_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 6, Existing::Refuse).unwrap();
    let refused = write(dir.path(), 9, Existing::Refuse).unwrap_err().to_string();
    assert!(refused.contains("already holds a feature index"), "{refused}");
    assert_eq!(FeatureIndex::open(dir.path()).unwrap().summaries().len(), 6);
    write(dir.path(), 9, Existing::Overwrite).unwrap();
    assert_eq!(FeatureIndex::open(dir.path()).unwrap().summaries().len(), 9);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5);
}

#[test]
fn a_directory_of_something_else_is_never_written_into() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("manifest.json"), "{\"rows\": 7}").unwrap();
    assert!(write(dir.path(), 1, Existing::Overwrite).is_err());
    fs::remove_file(dir.path().join("manifest.json")).unwrap();
    fs::write(dir.path().join("thesis.txt"), "").unwrap();
    let refused = write(dir.path(), 1, Existing::Overwrite).unwrap_err().to_string();
    assert!(refused.contains("thesis.txt"), "{refused}");
}

#[test]
fn an_abandoned_index_leaves_nothing_and_a_short_one_does_not_finish() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = IndexWriter::create(dir.path(), Existing::Refuse).unwrap();
    writer.feature(&detail(0)).unwrap();
    assert!(
        writer
            .feature(&detail(2))
            .unwrap_err()
            .to_string()
            .contains("expected 1, got 2")
    );
    writer.context(&context(4)).unwrap();
    assert!(writer.context(&context(4)).is_err());
    assert!(writer.finish(&manifest(2), [b"a"]).is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn damage_is_an_error_that_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let error = |path: &Path| FeatureIndex::open(path).map(|_| ()).unwrap_err().to_string();
    assert!(error(&dir.path().join("absent")).contains("no such directory"));
    assert!(error(dir.path()).contains("not a feature index"));
    for name in [
        "features.parquet",
        "examples.parquet",
        "contexts.parquet",
        "vocabulary.parquet",
        "manifest.json",
    ] {
        let _ = fs::remove_dir_all(dir.path());
        write(dir.path(), 300, Existing::Refuse).unwrap();
        let path = dir.path().join(name);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(error(dir.path()).contains(name), "{name}: {}", error(dir.path()));
        fs::write(&path, b"").unwrap();
        assert!(error(dir.path()).contains(name));
    }
    write(&dir.path().join("b"), 1, Existing::Refuse).unwrap();
    fs::copy(
        dir.path().join("b/contexts.parquet"),
        dir.path().join("b/features.parquet"),
    )
    .unwrap();
    assert!(error(&dir.path().join("b")).contains("column feature should be"));
    fs::write(dir.path().join("b/manifest.json"), "{\"format_version\": 99}").unwrap();
    assert!(error(&dir.path().join("b")).contains("99"));
}
