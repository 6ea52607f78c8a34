//! What a store holds: decided before its first row, and never changed after.
//!
//! Everything that the bytes of a store depend on besides model and text is in here, the number of contexts a shard
//! included. Two harvests with equal specifications therefore write equal files, and a harvest that was killed can be
//! continued only with the specification that it began with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::compression::Compression;
use super::manifest::{COMPRESSED_VERSION, VERSION};
use crate::dtype::ActDtype;
use crate::error::{Error, Result};
use crate::product::Precision;

/// Activation bytes that a shard should hold, all hooks together.
pub(crate) const SHARD_BYTES: u64 = 64 << 20;
/// The most tokens that a shard should hold.
const SHARD_TOKENS: u64 = 1 << 22;
/// Activation bytes that a row group should hold, all hooks together: bounds what a writer keeps in memory.
const GROUP_BYTES: u64 = 16 << 20;
/// Activation bytes of a data page.
const PAGE_BYTES: u64 = 1 << 20;
/// Activation bytes of a compressed data page: what a chunk of the mixed reader is at most.
const PACKED_PAGE_BYTES: u64 = 64 << 10;
/// The widest row that is accepted, in bytes. The widest residual streams today are an eighth of it.
const MAX_ROW_BYTES: u64 = 1 << 20;

/// One recorded hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookSpec {
    /// Name as TransformerLens prints it, `blocks.3.hook_resid_post`; also the name of the column.
    pub name: String,
    /// Width of a row.
    pub d_in: usize,
}

/// The model that activations come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRef {
    /// What people call it: the name of its directory.
    pub name: String,
    /// Digest of its weights, where somebody computed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Number of transformer blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of tokens that it knows.
    pub vocab_size: usize,
    /// What its products were computed in; f32 if absent.
    #[serde(default, skip_serializing_if = "Precision::is_default")]
    pub precision: Precision,
}

/// The text that activations come from, and how it was cut into contexts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusRef {
    /// What people call it: the name of its file or directory.
    pub name: String,
    /// Digest of the text, where somebody computed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Every setting that decides which tokens come out of the text, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
}

/// The specification of a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreSpec {
    /// The recorded hooks, in the order of their columns.
    pub hooks: Vec<HookSpec>,
    /// Number format of every activation column.
    pub dtype: ActDtype,
    /// The model.
    pub model: ModelRef,
    /// The text.
    pub corpus: CorpusRef,
    /// The most tokens of a context.
    pub context_length: usize,
    /// Whether special tokens (BOS) have no activation rows. Their ids are in the contexts all the same.
    pub skip_special: bool,
    /// How many tokens were asked for; all of the text if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// Contexts of every shard but the last.
    pub contexts_per_shard: u64,
    /// How activations and contexts are compressed; not at all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
}

impl StoreSpec {
    /// A specification with shards of about 64 MiB of activations, special tokens skipped and no limit on tokens.
    pub fn new(
        hooks: Vec<HookSpec>,
        dtype: ActDtype,
        model: ModelRef,
        corpus: CorpusRef,
        context_length: usize,
    ) -> Self {
        let mut spec = Self {
            hooks,
            dtype,
            model,
            corpus,
            context_length,
            skip_special: true,
            max_tokens: None,
            contexts_per_shard: 1,
            compression: None,
        };
        let context_bytes = spec.row_bytes().saturating_mul(context_length as u64);
        // Narrow rows would make shards of very many tokens, which a writer keeps in memory.
        let most = (SHARD_TOKENS / context_length.max(1) as u64).max(1);
        spec.contexts_per_shard = (SHARD_BYTES / context_bytes.max(1)).clamp(1, most);
        spec
    }

    /// The version of the format that a store of this specification has.
    pub(crate) fn version(&self) -> u32 {
        match self.compression {
            None => VERSION,
            Some(_) => COMPRESSED_VERSION,
        }
    }

    /// Activation bytes of one row, all hooks together, before compression.
    pub fn row_bytes(&self) -> u64 {
        self.hooks
            .iter()
            .map(|h| self.hook_bytes(h))
            .fold(0, u64::saturating_add)
    }

    /// Bytes of one row of a hook. A width from a manifest may be anything: it does not overflow.
    fn hook_bytes(&self, hook: &HookSpec) -> u64 {
        match hook.d_in.checked_mul(8) {
            Some(_) => self.dtype.row_bytes(hook.d_in) as u64,
            None => u64::MAX,
        }
    }

    /// Rows of every row group but a shard's last.
    pub(crate) fn group_rows(&self) -> usize {
        (GROUP_BYTES / self.row_bytes().max(1)).clamp(64, 1 << 16) as usize
    }

    /// Rows of every data page of an activation column but a row group's last.
    pub(crate) fn page_rows(&self, hook: &HookSpec) -> usize {
        let page = match self.compression {
            None => PAGE_BYTES,
            Some(_) => PACKED_PAGE_BYTES,
        };
        (page / self.hook_bytes(hook).max(1)).clamp(1, 1 << 16) as usize
    }

    /// The hook of a name, with its column's place among the activation columns; of no name, the only hook.
    ///
    /// # Errors
    /// [`Error::Invalid`] listing the hooks if there is no such hook, or several and no name.
    pub fn hook(&self, name: Option<&str>) -> Result<(usize, &HookSpec)> {
        let found = match name {
            Some(name) => self.hooks.iter().position(|h| h.name == name),
            None => (self.hooks.len() == 1).then_some(0),
        };
        let names: Vec<&str> = self.hooks.iter().map(|h| h.name.as_str()).collect();
        match (found, name) {
            (Some(at), _) => Ok((at, &self.hooks[at])),
            (None, Some(name)) => Err(Error::Invalid(format!(
                "the store has no hook {name:?}; it has {}",
                names.join(", ")
            ))),
            (None, None) => Err(Error::Invalid(format!(
                "the store has several hooks, say which: {}",
                names.join(", ")
            ))),
        }
    }

    /// Names of hooks with `blocks.*.SITE` put out: the site of every block that was recorded, in the order of the columns.
    /// Other names stay as they are.
    ///
    /// # Errors
    /// [`Error::Invalid`] listing the hooks if a pattern is of none of them.
    pub fn expand_hooks(&self, names: &[String]) -> Result<Vec<String>> {
        let mut hooks: Vec<String> = Vec::new();
        for name in names {
            let Some(site) = name.strip_prefix("blocks.*.") else {
                hooks.push(name.clone());
                continue;
            };
            let of_site = |hook: &&HookSpec| {
                let block = hook.name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
                block.is_some_and(|(number, of)| of == site && number.bytes().all(|b| b.is_ascii_digit()))
            };
            let before = hooks.len();
            hooks.extend(self.hooks.iter().filter(of_site).map(|hook| hook.name.clone()));
            if hooks.len() == before {
                let there: Vec<&str> = self.hooks.iter().map(|h| h.name.as_str()).collect();
                return Err(Error::Invalid(format!(
                    "the store has no hook {name:?}; it has {}",
                    there.join(", ")
                )));
            }
        }
        Ok(hooks)
    }

    /// Checks that a store of this specification can exist.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let invalid = |text: String| Err(Error::Invalid(text));
        if self.hooks.is_empty() {
            return invalid("a store needs at least one hook".into());
        }
        for (at, hook) in self.hooks.iter().enumerate() {
            let bytes = self.hook_bytes(hook);
            if hook.d_in == 0 || bytes > MAX_ROW_BYTES {
                return invalid(format!(
                    "hook {}: d_in {} of {} makes rows of {bytes} bytes, expected 1 to {MAX_ROW_BYTES}",
                    hook.name, hook.d_in, self.dtype
                ));
            }
            let reserved = ["context", "position", "token"].contains(&hook.name.as_str());
            if hook.name.is_empty() || reserved || hook.name.chars().any(char::is_control) {
                return invalid(format!("hook {:?} cannot be the name of a column", hook.name));
            }
            if self.hooks[..at].iter().any(|h| h.name == hook.name) {
                return invalid(format!("hook {} is there twice", hook.name));
            }
        }
        let positions = (self.context_length as u64).saturating_mul(self.contexts_per_shard);
        if positions == 0 || positions > u64::from(u32::MAX) {
            return invalid(format!(
                "context_length {} times contexts_per_shard {} is {positions}, expected 1 to 2^32 - 1",
                self.context_length, self.contexts_per_shard
            ));
        }
        Ok(())
    }

    /// The first difference between two specifications, as a sentence; `None` if there is none.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let (ours, theirs) = (fields(self), fields(other));
        let names = ours.keys().chain(theirs.keys());
        names
            .filter(|&name| ours.get(name) != theirs.get(name))
            .map(|name| {
                let show = |of: &BTreeMap<String, String>| of.get(name).cloned().unwrap_or("absent".into());
                format!("{name} was {} and now is {}", show(&ours), show(&theirs))
            })
            .next()
    }
}

/// Every leaf of a specification under its dotted name, printed as JSON.
fn fields(spec: &StoreSpec) -> BTreeMap<String, String> {
    fn walk(name: String, value: &serde_json::Value, out: &mut BTreeMap<String, String>) {
        let dot = if name.is_empty() { "" } else { "." };
        match value {
            serde_json::Value::Object(map) => map
                .iter()
                .for_each(|(key, value)| walk(format!("{name}{dot}{key}"), value, out)),
            leaf => {
                out.insert(name, leaf.to_string());
            }
        }
    }
    let mut out = BTreeMap::new();
    // A specification is plain data: it always serialises.
    walk(String::new(), &serde_json::to_value(spec).unwrap_or_default(), &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> StoreSpec {
        let hook = |name: &str, d_in| HookSpec {
            name: name.into(),
            d_in,
        };
        let hooks = vec![
            hook("blocks.0.hook_resid_post", 768),
            hook("blocks.1.hook_mlp_out", 768),
        ];
        StoreSpec::new(hooks, ActDtype::F16, ModelRef::default(), CorpusRef::default(), 256)
    }

    #[test]
    fn shards_hold_about_64_mebibytes() {
        let spec = spec();
        let bytes = spec.contexts_per_shard * 256 * 2 * 768 * 2;
        assert!((60 << 20..=64 << 20).contains(&bytes), "{bytes}");
        spec.validate().unwrap();
    }

    #[test]
    fn a_difference_is_named_by_its_field_and_both_values() {
        let (old, mut new) = (spec(), spec());
        assert_eq!(old.difference(&new), None);
        new.context_length = 128;
        assert_eq!(old.difference(&new).unwrap(), "context_length was 256 and now is 128");
        new = spec();
        new.corpus.settings.insert("bos".into(), "1".into());
        assert_eq!(
            old.difference(&new).unwrap(),
            "corpus.settings.bos was absent and now is \"1\""
        );
    }

    #[test]
    fn impossible_specifications_are_refused_by_field() {
        let refused = |change: fn(&mut StoreSpec)| {
            let mut spec = spec();
            change(&mut spec);
            spec.validate().unwrap_err().to_string()
        };
        assert!(refused(|s| s.hooks.clear()).contains("at least one hook"));
        assert!(refused(|s| s.hooks[1].name = s.hooks[0].name.clone()).contains("twice"));
        assert!(refused(|s| s.hooks[0].name = "token".into()).contains("token"));
        assert!(refused(|s| s.hooks[0].d_in = 0).contains("d_in 0"));
        assert!(refused(|s| s.hooks[0].d_in = usize::MAX).contains("d_in"));
        assert!(refused(|s| s.contexts_per_shard = u64::MAX).contains("contexts_per_shard"));
        assert!(refused(|s| s.context_length = 0).contains("context_length"));
    }

    #[test]
    fn a_hook_must_be_named_only_where_there_are_several() {
        let mut spec = spec();
        assert!(
            spec.hook(None)
                .unwrap_err()
                .to_string()
                .contains("blocks.1.hook_mlp_out")
        );
        assert_eq!(spec.hook(Some("blocks.1.hook_mlp_out")).unwrap().0, 1);
        let missing = spec.hook(Some("blocks.9.hook_mlp_out")).unwrap_err().to_string();
        assert!(missing.contains("blocks.9") && missing.contains("blocks.0.hook_resid_post"));
        spec.hooks.truncate(1);
        assert_eq!(spec.hook(None).unwrap().0, 0);
    }
}
